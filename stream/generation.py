"""What makes lists: the Generator seam and its implementations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mtgr.checkpoint import open_checkpoint
from mtgr.requests import ListOutcome, ListRequest, ModelInfo
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

    async def close(self) -> None:
        """Release everything; no process is left behind."""


class TorchGenerator:
    """The reference model in plain torch, in a thread of this process."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    async def start(self) -> ModelInfo:
        from mtgr.reference import ReferenceRecommender

        self._recommender = await asyncio.to_thread(ReferenceRecommender, self._checkpoint)
        return self._recommender.checkpoint.info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        return await asyncio.to_thread(self._recommender.recommend, list(requests))

    async def close(self) -> None:
        return


def generator_factory(settings: Settings) -> Callable[[], Generator]:
    """What makes the generator that the settings name; model code is imported only for the kind that needs it.

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

    engine_options = EngineOptions(
        checkpoint=checkpoint,
        kv_cache_gib=options.kv_cache_gib,
        memory_utilization=options.memory_utilization,
        dtype=options.dtype,
        max_num_seqs=options.max_batch_users * options.max_concurrent_batches,
    )
    return lambda: RecommendationEngine(engine_options)
