"""What makes lists: the Generator seam and its implementations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from mtgr.checkpoint import open_checkpoint
from mtgr.requests import AddedVideos, CacheStats, ListOutcome, ListRequest, ModelInfo, NewVideo
from stream.settings import Settings


class Generator(Protocol):
    """Turns histories into recommendation lists.

    Every implementation gives the same lists for the same checkpoint. One object lives once: after close() or an
    EngineFailed a new one is made.
    """

    async def start(self) -> ModelInfo:
        """Load the model and become ready; raises InputError for a wrong checkpoint, EngineFailed otherwise."""

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in order; raises EngineFailed when the engine broke."""

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended by this object; raises EngineFailed when the engine broke."""

    async def close(self) -> None:
        """Release everything; no process is left behind."""


@runtime_checkable
class Caching(Protocol):
    """A generator whose KV cache this process manages."""

    def cache_stats(self) -> CacheStats | None:
        """What lies in the cache, None while there is none."""


class TorchGenerator:
    """The reference model in plain torch, in threads of this process: several batches at once, or new videos alone."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._changing = asyncio.Lock()  # videos join the catalog, or wait to
        self._batches = 0
        self._idle = asyncio.Event()  # no batch is being made
        self._idle.set()

    async def start(self) -> ModelInfo:
        from mtgr.reference import ReferenceRecommender

        self._recommender = await asyncio.to_thread(ReferenceRecommender, self._checkpoint)
        return self._recommender.checkpoint.info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        async with self._changing:
            self._batches += 1
            self._idle.clear()
        try:
            return await asyncio.to_thread(self._recommender.recommend, list(requests))
        finally:
            self._batches -= 1
            if not self._batches:
                self._idle.set()

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        async with self._changing:
            await self._idle.wait()
            return await asyncio.to_thread(self._recommender.add_videos, list(videos))

    async def close(self) -> None:
        return


def generator_factory(settings: Settings, replica: int = 0) -> Callable[[], Generator]:
    """What makes the generator that the settings name, or one replica of it by its number.

    Model code is imported only for the kind that needs it.

    Raises InputError if the checkpoint is not named or is wrong, before anything is waited for.
    """
    options = settings.generator
    if options.kind == "server":
        from mtgr.serving.client import EngineClient

        url, timeout = options.url, options.request_timeout_seconds
        assert url is not None
        return lambda: EngineClient(url, timeout_seconds=timeout)
    checkpoint = open_checkpoint(settings.require_checkpoint()).directory
    if options.kind == "torch":
        return lambda: TorchGenerator(checkpoint)
    from mtgr.serving.engine import EngineOptions, RecommendationEngine
    from mtgr.serving.session_lists import BATCH_REQUESTS

    engine_options = EngineOptions(
        checkpoint=checkpoint,
        kv_cache_gib=options.kv_cache_gib,
        memory_utilization=options.memory_utilization,
        dtype=options.dtype,
        quantization=options.quantization,
        kv_cache_dtype=options.kv_cache_dtype,
        tensor_parallel_size=options.tensor_parallel_size,
        replicas=options.replicas,
        replica=replica,
        # all that can be asked for at once, as far as the engine would put it into one step
        max_num_seqs=min(options.max_batch_users * options.max_concurrent_batches, BATCH_REQUESTS),
    )
    return lambda: RecommendationEngine(engine_options)
