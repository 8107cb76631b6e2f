"""Lists of evaluation cases made by vLLM, on an engine that is started for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtgr.checkpoint import Checkpoint
from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.evaluation.protocol import Case
from mtgr.evaluation.rankings import OnProgress, Rankings
from mtgr.evaluation.served import list_requests, rank_generated
from mtgr.requests import NewVideo
from mtgr.serving.engine import EngineOptions, RecommendationEngine


async def rank_by_engine(
    cases: Sequence[Case],
    options: EngineOptions,
    checkpoint: Checkpoint,
    index_of: Mapping[str, int],
    k: int,
    *,
    profiles: ProfileTimeline | None = None,
    new_videos: Sequence[NewVideo] = (),
    on_progress: OnProgress | None = None,
) -> Rankings:
    """Rankings of the cases from vLLM's lists, known down to k.

    new_videos: those that have joined the checkpoint's catalog, in the same order, so that the engine has them too.
    Raises InputError if the options or the checkpoint are wrong or a case is refused, and EngineFailed if vLLM
    does not come up or breaks.
    """
    requests = list_requests(cases, checkpoint.config, checkpoint.catalog, k, profiles)
    engine = RecommendationEngine(options)
    await engine.start()
    try:
        if new_videos:
            await engine.add_videos(new_videos)
        return await rank_generated(cases, requests, engine.recommend, index_of, k, on_progress)
    finally:
        await engine.close()
