"""An engine on several devices, and several engines: the lists are those of one, and so is the end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from histories import interactions, scattered
from records import eventually
from serving import SPARE, assert_same_lists, list_request, user_attributes, video_attributes

from mtgr.attributes import pack_attributes
from mtgr.checkpoint import Checkpoint
from mtgr.errors import EngineFailed
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListRequest, NewVideo
from mtgr.serving.engine import EngineOptions, RecommendationEngine
from mtgr.serving.replicated_engine import ReplicatedEngine

pytestmark = pytest.mark.vllm


@pytest.fixture
def checkpoint(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    """Of the model that has everything."""
    return checkpoints["everything"]


def requests_of(seed: int, *lengths: int) -> list[ListRequest]:
    """Users of whom no two do the same."""
    chance = random.Random(seed)
    return [
        list_request(
            scattered(interactions(100 * seed + place, length, f"u{seed}-{place}"), chance),
            profile=user_attributes(chance),
        )
        for place, length in enumerate(lengths)
    ]


def new_videos() -> list[NewVideo]:
    return [
        NewVideo(f"new{number}", pack_attributes(video_attributes(random.Random(number))))
        for number in range(SPARE)
    ]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def shared_memory() -> set[Path]:
    """What ranks on a CPU share, as far as it has a name."""
    return set(Path("/dev/shm").glob("vllm_dist_*"))


@pytest.mark.timeout(600)
async def test_two_ranks_serve_what_the_reference_computes(checkpoint: Checkpoint) -> None:
    """Heads, widths and the catalog are shared out; new videos join both parts; Ctrl-C is no matter of the ranks, and
    when the engine process is killed they end with it and leave nothing in the memory they shared."""
    before = shared_memory()
    engine = RecommendationEngine(
        EngineOptions(checkpoint=checkpoint.directory, kv_cache_gib=0.05, tensor_parallel_size=2)
    )
    reference = ReferenceRecommender(checkpoint.directory)
    await engine.start()
    try:
        requests = requests_of(1, 1, 80, 16, 40)
        assert_same_lists(await engine.recommend(requests), reference.recommend(requests))
        (process,) = engine.process_ids
        ranks = [pid for pid in children(process) if b"resource_tracker" not in command_of(pid)]
        assert len(ranks) == 2
        for pid in (process, *ranks):
            os.kill(pid, signal.SIGINT)
        assert await engine.add_videos(new_videos()) == reference.add_videos(new_videos())
        assert_same_lists(await engine.recommend(requests), reference.recommend(requests))
        assert shared_memory() <= before
        os.kill(process, signal.SIGKILL)
        await eventually(lambda: not any(map(is_running, ranks)), "the ranks have ended")
        with pytest.raises(EngineFailed):
            await engine.recommend(requests)
    finally:
        await engine.close()


@pytest.mark.timeout(600)
async def test_replicas_serve_what_the_reference_computes(checkpoint: Checkpoint) -> None:
    """Each has a part of the users and all new videos; when one dies, the other goes on."""
    engine = ReplicatedEngine(EngineOptions(checkpoint=checkpoint.directory, kv_cache_gib=0.05, replicas=2))
    reference = ReferenceRecommender(checkpoint.directory)
    assert await engine.start() == checkpoint.info
    try:
        requests = requests_of(2, *range(1, 80, 10))
        assert {engine.replica_of(request.user_id) for request in requests} == {0, 1}
        assert await engine.add_videos(new_videos()) == reference.add_videos(new_videos())
        wanted = reference.recommend(requests)
        assert_same_lists(await engine.recommend(requests), wanted)
        (kept,), (killed,) = (replica.process_ids for replica in engine.replicas)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(engine.recommend(requests), 30)
        assert [replica.failed for replica in engine.replicas] == [False, True]
        of_first = [place for place, one in enumerate(requests) if engine.replica_of(one.user_id) == 0]
        first = await engine.recommend([requests[place] for place in of_first])
        assert_same_lists(first, [wanted[place] for place in of_first])
    finally:
        await engine.close()
    assert not is_running(kept)
