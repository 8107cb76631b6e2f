"""Promises of stream.generation: the torch generator is the reference model, one change of its catalog at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from events import EventMaker
from serving import list_request, random_checkpoint

from mtgr.checkpoint import open_checkpoint
from mtgr.reference import ReferenceRecommender
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ListResult, NewVideo
from mtgr.serving.engine import RecommendationEngine
from mtgr.serving.options import engine_arguments
from stream.generation import TorchGenerator, generator_factory
from stream.settings import load_settings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random", n_items=30, spare_items=1)


async def test_torch_lists_are_those_of_the_reference_with_new_videos_too(checkpoint: Path) -> None:
    """What is asked for is handed on whole: strategy and new videos give the lists of the reference model."""
    request = list_request(EventMaker(seed=1, users=["u"]).take(5), 3)
    slate = ListRequest(request.user_id, request.records, request.videos, 3, "slate")
    new = [NewVideo("new"), NewVideo("too many"), NewVideo("v1")]
    generator, reference = TorchGenerator(checkpoint), ReferenceRecommender(checkpoint)
    assert await generator.start() == reference.checkpoint.info
    assert await generator.add_videos(new) == reference.add_videos(new) == AddedVideos(1, 1, ["too many"])
    assert await generator.recommend([request, slate]) == reference.recommend([request, slate])
    await generator.close()


async def test_videos_join_between_batches_and_never_during_one(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several batches are made at once; videos wait for those under way, and the batches after them for the videos."""
    began, go = threading.Semaphore(0), threading.Event()
    done: list[str] = []

    def recommend(self: ReferenceRecommender, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        began.release()
        assert go.wait(20)
        done.append("batch")
        return [ListResult([], [], 1, 0) for _ in requests]

    def add_videos(self: ReferenceRecommender, videos: Sequence[NewVideo]) -> AddedVideos:
        done.append("videos")
        return AddedVideos(len(videos), 0, [])

    monkeypatch.setattr(ReferenceRecommender, "recommend", recommend)
    monkeypatch.setattr(ReferenceRecommender, "add_videos", add_videos)
    generator = TorchGenerator(checkpoint)
    await generator.start()
    batches = [asyncio.create_task(generator.recommend([])) for _ in range(2)]
    for _ in batches:
        assert await asyncio.to_thread(began.acquire, timeout=20), "the batches wait for each other"
    adding = asyncio.create_task(generator.add_videos([NewVideo("new")]))
    await asyncio.sleep(0)
    batches.append(asyncio.create_task(generator.recommend([])))
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait_for(asyncio.gather(adding, *batches), 20)
    assert done == ["batch", "batch", "videos", "batch"]


@pytest.mark.parametrize(
    ("users", "batches", "step"), [(8, 2, 16), (64, 4, 256), (64, 8, 256), (65_536, 1_024, 256)]
)
def test_a_step_takes_all_that_is_asked_for_at_once_and_no_more_than_a_batch(
    checkpoint: Path, users: int, batches: int, step: int
) -> None:
    """However many lists a daemon may ask for, the engine starts, and is sized for the steps that it can get."""
    changes = {
        "model.checkpoint": checkpoint,
        "generator.max_batch_users": users,
        "generator.max_concurrent_batches": batches,
    }
    engine = generator_factory(
        load_settings(None, {}, [f"{key}={value}" for key, value in changes.items()])
    )()
    assert isinstance(engine, RecommendationEngine)
    assert engine_arguments(engine.options, open_checkpoint(checkpoint))["max_num_seqs"] == step
