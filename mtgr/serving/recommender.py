"""The vLLM engine for applications: what a user did goes in, and what to recommend comes out."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

from msgspec import structs

from mtgr.arguments import check_argument, shown
from mtgr.behavior_sessions import BehaviorSessions
from mtgr.behaviors import Behavior
from mtgr.checkpoint import open_checkpoint
from mtgr.errors import InputError
from mtgr.new_videos import parse_videos
from mtgr.recommendations import Recommendations, list_of, recommendations
from mtgr.requests import AddedVideos, Strategy
from mtgr.serving.engine import EngineOptions, RecommendationEngine
from mtgr.serving.on_demand import OnDemandEngine
from mtgr.suggestions import did_you_mean
from schemas.lists import ModelVersion
from schemas.videos import Video

MAX_SESSIONS: Final = 10_000
"""Sessions that are remembered where the caller does not say how many."""


def now_ms() -> int:
    """Milliseconds since 1970 by the machine's clock."""
    return time.time_ns() // 1_000_000


class VllmArguments(TypedDict, total=False):
    """How an engine is run; what is left out is as `EngineOptions` has it."""

    tensor_parallel_size: int
    gpu_memory_utilization: float
    max_num_batched_tokens: int
    max_num_seqs: int
    dtype: str
    quantization: str | None
    kv_cache_gib: float | None
    kv_cache_dtype: str


_OPTIONS: Final = {name: name for name in VllmArguments.__annotations__} | {
    "gpu_memory_utilization": "memory_utilization"
}
_TYPES: Final = {field.name: field.type for field in structs.fields(EngineOptions)}


class VllmRecommender:
    """Recommends through a vLLM engine, which is a process of its own.

    Calls that overlap are batched. The engine is started by entering the context, or else by the first call; after it
    has failed, by the next one. It belongs to the event loop that it is first used in.
    """

    def __init__(self, engine: OnDemandEngine, sessions: BehaviorSessions, model: ModelVersion) -> None:
        """`create_vllm_engine` makes one."""
        self._engine: Final = engine
        self._sessions: Final = sessions
        self.model: Final = model

    async def start(self) -> None:
        """Return once the engine runs.

        Raises InputError for a wrong checkpoint or option, and EngineFailed if vLLM does not come up.
        """
        await self._engine.start()

    async def generate_recommendations(
        self,
        user_id: str,
        session_id: str,
        user_behaviors: Iterable[Behavior | Mapping[str, Any]],
        num_recommendations: int = 10,
        *,
        profile: Mapping[str, Any] | None = None,
        strategy: Strategy = "topk",
    ) -> Recommendations:
        """The videos that a user is recommended after these behaviours, oldest first, and the session's earlier ones.

        A session grows: sending all that was done in it each time, or only what is new, gives the same list. profile:
        what is known of the user by the names of the model's config, kept for the session until another is given;
        strategy: as of `mtgr.requests.Strategy`. Raises InputError for a wrong argument, with nothing remembered;
        RequestRefused where the model has no such list, as of more videos than are unseen; EngineFailed if the engine
        breaks or is closed.
        """
        began = time.perf_counter()
        request = self._sessions.request(
            user_id, session_id, user_behaviors, num_recommendations, profile=profile, strategy=strategy
        )
        result = list_of(await self._engine.recommend(request))
        return recommendations(user_id, session_id, result, self.model, began)

    async def add_videos(self, videos: Iterable[Video | Mapping[str, Any]]) -> AddedVideos:
        """Let new videos be recommended, as far as the model has spare places: `spare_items` of its config.

        Each has a video_id, and attributes by the names of the model's config where they are known. An engine that is
        started again after a failure has them too. Raises InputError for a wrong argument, before any is added, and
        EngineFailed if the engine breaks or is closed.
        """
        return await self._engine.add_videos(parse_videos(videos))

    def forget_session(self, user_id: str, session_id: str) -> bool:
        """Forget what was done in a session; whether anything was known of it."""
        return self._sessions.forget(user_id, session_id)

    async def close(self) -> None:
        """Stop the engine process; calls under way and later ones get EngineFailed."""
        await self._engine.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def create_vllm_engine(
    model_path: str | os.PathLike[str],
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    dtype: str = "auto",
    quantization: str | None = None,
    *,
    kv_cache_gib: float | None = None,
    kv_cache_dtype: str = "auto",
    max_sessions: int = MAX_SESSIONS,
    clock: Callable[[], int] = now_ms,
) -> VllmRecommender:
    """The engine of a checkpoint directory, not started yet.

    The arguments are options of `EngineOptions`; `max_sessions` and `clock` are those of `BehaviorSessions`. Raises
    InputError for a wrong checkpoint or argument, or where vLLM is not installed.
    """
    options = engine_options(
        model_path,
        tensor_parallel_size=tensor_parallel_size,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        dtype=dtype,
        quantization=quantization,
        kv_cache_gib=kv_cache_gib,
        kv_cache_dtype=kv_cache_dtype,
    )
    checkpoint = open_checkpoint(options.checkpoint)
    sessions = BehaviorSessions(checkpoint.config.max_events, max_sessions=max_sessions, clock=clock)
    return VllmRecommender(engine_of(options), sessions, ModelVersion(checkpoint.name, checkpoint.version))


def engine_options(model_path: str | os.PathLike[str], **arguments: Unpack[VllmArguments]) -> EngineOptions:
    """The options of a checkpoint's engine; InputError names a wrong argument, its value and what would be right."""
    values: dict[str, Any] = {"checkpoint": Path(model_path), "dtype": "auto"}
    for name, value in arguments.items():
        if name not in _OPTIONS:
            raise InputError(f"unknown argument {shown(name)}{did_you_mean(name, _OPTIONS)}")
        option = _OPTIONS[name]
        values[option] = check_argument(name, value, _TYPES[option])
    return EngineOptions(**values)


def engine_of(options: EngineOptions) -> OnDemandEngine:
    """The engine of these options, not started; InputError for a wrong checkpoint, or where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError("vLLM is not installed: install mtgr-stream[cpu], or mtgr-stream[cuda] for GPUs")
    return OnDemandEngine(RecommendationEngine(options))
