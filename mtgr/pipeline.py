"""The library face of a model: what a user did goes in, from any thread, and what to recommend comes out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from mtgr.additions import encode_additions
from mtgr.behavior_sessions import BehaviorSessions
from mtgr.behaviors import Behavior
from mtgr.checkpoint import open_checkpoint
from mtgr.errors import EngineFailed
from mtgr.loop_thread import LoopThread
from mtgr.new_videos import parse_videos
from mtgr.recommendations import Recommendations, list_of, recommendations
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, NewVideo, Strategy
from mtgr.serving.recommender import MAX_SESSIONS, VllmArguments, engine_of, engine_options, now_ms
from schemas.lists import ModelVersion
from schemas.videos import Video

if TYPE_CHECKING:
    from mtgr.reference import ReferenceRecommender
    from mtgr.serving.on_demand import OnDemandEngine


class UserBehaviorInferencePipeline:
    """Recommends by one checkpoint, with vLLM or in plain torch: the same sessions, the same lists.

    A context manager, which ends the engine process. Any number of threads may call it, also ones that run an event
    loop. What makes the lists is loaded with the first one: torch, or a vLLM engine in a process of its own.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        max_sessions: int = MAX_SESSIONS,
        clock: Callable[[], int] = now_ms,
        **engine: Unpack[VllmArguments],
    ) -> None:
        """`engine` are arguments of `create_vllm_engine`, `max_sessions` and `clock` those of `BehaviorSessions`.

        Raises InputError for a wrong checkpoint or argument.
        """
        checkpoint = self._checkpoint = open_checkpoint(model_path)
        self.model: Final = ModelVersion(checkpoint.name, checkpoint.version)
        self._options: Final = engine_options(checkpoint.directory, **engine)
        self._sessions: Final = BehaviorSessions(
            checkpoint.config.max_events, max_sessions=max_sessions, clock=clock
        )
        self._reference: ReferenceRecommender | None = None
        self._loading: Final = threading.Lock()
        self._added: Final[list[NewVideo]] = []
        self._engine: OnDemandEngine | None = None  # lives in the loop
        self._giving: Final = asyncio.Lock()  # of what the engine has not been given yet of the videos
        self._given = 0
        self._loop: LoopThread | None = None
        self._calls: Final[set[Future[ListOutcome]]] = set()  # that the loop has to answer
        self._closed = False
        self._changing: Final = threading.Lock()  # of what close() ends

    def infer_recommendations(
        self,
        user_id: str,
        session_id: str,
        behaviors: Iterable[Behavior | Mapping[str, Any]],
        num_recommendations: int = 10,
        use_vllm: bool = True,
        *,
        profile: Mapping[str, Any] | None = None,
        strategy: Strategy = "topk",
    ) -> Recommendations:
        """The videos that a user is recommended after these behaviours, oldest first, and the session's earlier ones.

        A session grows: sending all that was done in it each time, or only what is new, gives the same list. profile:
        what is known of the user by the names of the model's config, kept for the session until another is given;
        strategy: as of `mtgr.requests.Strategy`. Raises InputError for a wrong argument, with nothing remembered;
        RequestRefused where the model has no such list, as of more videos than are unseen; EngineFailed if the pipeline
        is closed, or vLLM breaks: the next call then starts it again.
        """
        began = time.perf_counter()
        request = self._request(user_id, session_id, behaviors, num_recommendations, profile, strategy)
        if use_vllm:
            call = self._ask_engine(request)
            try:
                outcome = call.result()
            except BaseException:  # of the call, or an interrupt of the waiting
                call.cancel()
                raise
        else:
            outcome = self._ask_reference(request)
        return recommendations(user_id, session_id, list_of(outcome), self.model, began)

    async def infer_recommendations_async(
        self,
        user_id: str,
        session_id: str,
        behaviors: Iterable[Behavior | Mapping[str, Any]],
        num_recommendations: int = 10,
        use_vllm: bool = True,
        *,
        profile: Mapping[str, Any] | None = None,
        strategy: Strategy = "topk",
    ) -> Recommendations:
        """What `infer_recommendations` gives, without holding the event loop up; calls that overlap are batched."""
        began = time.perf_counter()
        request = self._request(user_id, session_id, behaviors, num_recommendations, profile, strategy)
        if use_vllm:
            outcome = await asyncio.wrap_future(self._ask_engine(request))
        else:
            outcome = await asyncio.to_thread(self._ask_reference, request)
        return recommendations(user_id, session_id, list_of(outcome), self.model, began)

    def add_videos(self, videos: Iterable[Video | Mapping[str, Any]]) -> AddedVideos:
        """Let new videos be recommended from the next list on, as far as the model has spare places (`spare_items`).

        Each has a video_id, and attributes by the names of the model's config where they are known. Both plain torch
        and vLLM have them, also where they are loaded later or started again. Raises InputError for a wrong argument,
        before any is added, and EngineFailed if the pipeline is closed.
        """
        new = parse_videos(videos)
        with self._loading:
            if self._closed:
                raise EngineFailed("the pipeline was closed")
            _, outcome = encode_additions(new, self._checkpoint.catalog, self._checkpoint.config)
            self._added.extend(new)
            if self._reference is not None:
                self._reference.add_videos(new)
        return outcome

    def forget_session(self, user_id: str, session_id: str) -> bool:
        """Forget what was done in a session; whether anything was known of it."""
        return self._sessions.forget(user_id, session_id)

    def close(self) -> None:
        """End the engine process and wait for that; calls under way get EngineFailed, as later ones do."""
        with self._changing:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.submit(self._close_engine()).result()
        concurrent.futures.wait(self._calls)  # told that it was closed
        loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(
        self,
        user_id: str,
        session_id: str,
        behaviors: Iterable[Behavior | Mapping[str, Any]],
        num_recommendations: int,
        profile: Mapping[str, Any] | None,
        strategy: Strategy,
    ) -> ListRequest:
        if self._closed:
            raise EngineFailed("the pipeline was closed")
        return self._sessions.request(
            user_id, session_id, behaviors, num_recommendations, profile=profile, strategy=strategy
        )

    def _ask_reference(self, request: ListRequest) -> ListOutcome:
        with self._loading:  # no list is made while videos join
            if self._reference is None:
                from mtgr.reference import ReferenceRecommender

                self._reference = ReferenceRecommender(self._options.checkpoint)
                self._reference.add_videos(self._added)
            (outcome,) = self._reference.recommend([request])
        return outcome

    def _ask_engine(self, request: ListRequest) -> Future[ListOutcome]:
        with self._changing:
            if self._closed:
                raise EngineFailed("the pipeline was closed")
            if self._loop is None:
                self._loop = LoopThread("recommendation-pipeline")
            call = self._loop.submit(self._recommend(request))
            self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    async def _recommend(self, request: ListRequest) -> ListOutcome:
        if self._engine is None:
            self._engine = engine_of(self._options)
        async with self._giving:
            if new := self._added[self._given :]:
                await self._engine.add_videos(new)
                self._given += len(new)
        return await self._engine.recommend(request)

    async def _close_engine(self) -> None:
        if self._engine is not None:
            await self._engine.close()
