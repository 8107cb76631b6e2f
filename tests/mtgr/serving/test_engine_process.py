"""The engine in a process of its own: same lists, calls that overlap, and an end that is told and complete."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from events import watch
from histories import interactions, scattered
from records import eventually
from serving import (
    ITEMS,
    SPARE,
    assert_same_lists,
    assert_same_slates,
    list_request,
    little_memory,
    user_attributes,
    video_attributes,
)

from mtgr.attributes import pack_attributes
from mtgr.checkpoint import Checkpoint
from mtgr.errors import EngineFailed, InputError
from mtgr.reference import ReferenceRecommender
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ListResult, NewVideo, Strategy
from mtgr.serving.client import EngineClient
from mtgr.serving.engine import EngineOptions, RecommendationEngine
from mtgr.serving.server import EngineServer
from schemas.lists import ModelVersion

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

LONGEST_GAP = 5.0
"""Seconds for which a start may hold the event loop up: far below the time after which Kafka misses a member."""


def requests_of(seed: int, *lengths: int, count: int = 10, strategy: Strategy = "topk") -> list[ListRequest]:
    chance = random.Random(seed)
    return [
        list_request(
            scattered(interactions(100 * seed + place, length), chance),
            count,
            strategy,
            user_attributes(chance),
        )
        for place, length in enumerate(lengths)
    ]


def new_videos(*names: str) -> list[NewVideo]:
    return [NewVideo(name, pack_attributes(video_attributes(random.Random(name)))) for name in names]


@pytest.fixture(scope="module")
def checkpoint(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    """Of the model that has everything."""
    return checkpoints["everything"]


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> ReferenceRecommender:
    """Its plain torch generator, which has a catalog of its own to add videos to."""
    return ReferenceRecommender(checkpoint.directory)


def is_same(outcome: ListOutcome, wanted: ListOutcome) -> bool:
    try:
        assert_same_lists([outcome], [wanted])
    except AssertionError:
        return False
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def longest_gap() -> float:
    """The longest time, until it is cancelled, for which nothing else ran on the event loop."""
    longest, last = 0.0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Checkpoint) -> AsyncIterator[RecommendationEngine]:
    engine = RecommendationEngine(EngineOptions(checkpoint=checkpoint.directory, **little_memory(0.1)))
    assert engine.process_ids == []
    gap = asyncio.create_task(longest_gap())
    info = await engine.start()
    await asyncio.sleep(0.05)
    gap.cancel()
    assert await gap < LONGEST_GAP
    assert info == checkpoint.info
    yield engine
    await engine.close()


async def test_lists_are_those_of_the_reference(
    engine: RecommendationEngine, checkpoint: Checkpoint, reference: ReferenceRecommender
) -> None:
    """Through the engine process too, with refusals in their places."""
    requests = requests_of(1, 1, 80, 16, 40, 17)
    requests.insert(2, list_request([]))
    assert_same_lists(await engine.recommend(requests), reference.recommend(requests))
    assert await engine.recommend([]) == []
    assert engine.model == ModelVersion(checkpoint.name, checkpoint.version)


async def test_slates_are_those_of_the_reference(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """Beside other lists and each other."""
    slates = requests_of(3, 80, 3, 40, count=12, strategy="slate")
    others = requests_of(4, 20, 70, count=30)
    got, lists = await asyncio.gather(engine.recommend(slates), engine.recommend(others))
    assert_same_slates(got, reference.recommend(slates))
    assert_same_lists(lists, reference.recommend(others))


async def test_appended_events_come_from_the_cache(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """A user's next list costs the new events; how many tokens were found again is told."""
    events = interactions(2, 70)
    for length, cached in ((60, 0), (61, 61), (70, 62)):
        requests = [list_request(events[:length])]
        outcomes = await engine.recommend(requests)
        assert_same_lists(outcomes, reference.recommend(requests))
        assert isinstance(outcomes[0], ListResult)
        assert outcomes[0].cached_tokens == cached
    stats = engine.cache_stats()
    assert stats is not None
    assert 0 < stats.sessions <= stats.used_blocks <= stats.blocks


async def test_calls_that_overlap_get_their_own_lists(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """vLLM batches across calls; lists of hundreds of videos beside lists of one."""
    calls = [requests_of(10 + call, 5, 30, 80, count=1 + 80 * call) for call in range(5)]
    outcomes = await asyncio.gather(*(engine.recommend(requests) for requests in calls))
    for got, requests in zip(outcomes, calls, strict=True):
        assert_same_lists(got, reference.recommend(requests))


async def test_a_call_that_is_cancelled_leaves_the_engine_serving(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """A daemon gives up a call that takes too long, and only that."""
    requests = requests_of(20, *[80] * 50)
    for pause in (0.0, 0.001, 0.02):
        call = asyncio.create_task(engine.recommend(requests))
        await asyncio.sleep(pause)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert_same_lists(await engine.recommend(requests[:3]), reference.recommend(requests[:3]))
    assert not engine.failed


async def test_new_videos_are_recommended_as_the_reference_recommends_them(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """From then on in every list that they belong in, and in histories as what they are."""
    videos = new_videos("fresh", "fresh too", "v3")
    before = requests_of(25, 20, 60, count=ITEMS - 80)
    assert_same_lists(await engine.recommend(before), reference.recommend(before))
    assert await engine.add_videos(videos) == reference.add_videos(videos) == AddedVideos(2, 1, [])
    watched = [
        list_request([*interactions(26, 30), watch("u", "1", video_id="fresh")], count=40),
        list_request([*interactions(26, 30), watch("u", "1", video_id="fresh")], 12, "slate"),
    ]
    after = [*requests_of(25, 20, 60, count=ITEMS - 80), *watched]
    outcomes = await engine.recommend(after)
    wanted = reference.recommend(after)
    assert_same_lists(outcomes[:3], wanted[:3])
    assert_same_slates(outcomes[3:], wanted[3:])
    listed = [set(outcome.video_ids) for outcome in outcomes if isinstance(outcome, ListResult)]
    assert {"fresh", "fresh too"} & listed[0]
    assert not {"fresh"} & listed[2]


async def test_lists_under_way_take_no_harm_from_new_videos(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """Each is the one from before or the one from after; those asked for meanwhile know the videos."""
    requests = requests_of(27, *[80] * 30, count=ITEMS - 80)
    watched = [list_request([*interactions(28, 20), watch("u", "1", video_id="soon")])]
    before = reference.recommend(requests)
    call = asyncio.create_task(engine.recommend(requests + watched))
    await asyncio.sleep(0)
    adding = asyncio.create_task(engine.add_videos(new_videos("soon")))
    later = asyncio.create_task(engine.recommend(requests + watched))
    outcomes = await call
    assert (await adding).added == 1
    reference.add_videos(new_videos("soon"))
    after = reference.recommend(requests + watched)
    for outcome, without, with_it in zip(outcomes, before, after, strict=False):
        assert is_same(outcome, without) or is_same(outcome, with_it)
    assert isinstance(outcomes[-1], ListResult)
    assert_same_lists(await later, after)


async def test_a_call_that_adds_videos_and_is_cancelled_leaves_no_video_half_added(
    engine: RecommendationEngine, reference: ReferenceRecommender
) -> None:
    """Whether the model has it or not, the next list is made with it."""
    for pauses, name in enumerate(("a", "b")):
        call = asyncio.create_task(engine.add_videos(new_videos(name)))
        for _ in range(1 + pauses):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    reference.add_videos(new_videos("a", "b"))
    requests = [list_request([watch("u", "1", video_id=name)], count=ITEMS) for name in ("a", "b")]
    assert_same_lists(await engine.recommend(requests), reference.recommend(requests))


async def test_two_clients_share_the_engine_through_a_server(
    engine: RecommendationEngine, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes over HTTP is what the engine says, digit for digit; new videos too, until there is no place left."""

    async def keep() -> None:
        """The engine is started already and is needed after."""

    async def started() -> object:
        return reference.checkpoint.info

    monkeypatch.setattr(engine, "start", started)
    monkeypatch.setattr(engine, "close", keep)
    async with EngineServer(engine, port=0) as server:
        clients = [EngineClient(f"http://127.0.0.1:{server.port}") for _ in range(2)]
        for client in clients:
            assert await client.start() == reference.checkpoint.info
        videos = new_videos("by the first", *(f"by the second {number}" for number in range(SPARE)))
        for client, some in zip(clients, (videos[:1], videos), strict=True):
            assert await client.add_videos(some) == reference.add_videos(some)
        assert videos[-1].video_id not in reference.checkpoint.catalog
        calls = [[*requests_of(30 + call, 4, 50, 11, count=99), list_request([])] for call in range(2)]
        outcomes = await asyncio.gather(
            *(client.recommend(requests) for client, requests in zip(clients, calls, strict=True))
        )
        for got, requests in zip(outcomes, calls, strict=True):
            assert_same_lists(got, reference.recommend(requests))
        for client in clients:
            await client.close()


async def test_ctrl_c_is_not_the_engines_to_obey(engine: RecommendationEngine) -> None:
    """It reaches every process of a terminal, and a daemon that drains still needs its engine."""
    os.kill(engine.process_ids[0], signal.SIGINT)
    assert len(await engine.recommend(requests_of(40, 3))) == 1


async def test_a_killed_engine_fails_what_is_under_way_and_what_comes(engine: RecommendationEngine) -> None:
    """At once, and not by a call that never returns; closing it then leaves nothing behind."""
    (pid,) = engine.process_ids
    calls = [asyncio.create_task(engine.recommend(requests_of(50 + call, *[80] * 40))) for call in range(3)]
    await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        for call in calls:
            with pytest.raises(EngineFailed, match="died"):
                await call
        with pytest.raises(EngineFailed):
            await engine.recommend(requests_of(60, 3))
    assert engine.failed
    await engine.close()
    assert not engine.failed
    with pytest.raises(EngineFailed, match="not started"):
        await engine.recommend(requests_of(60, 3))
    with pytest.raises(EngineFailed, match="not started"):
        await engine.add_videos(new_videos("late"))
    assert not is_running(pid)


async def test_a_restarted_engine_has_the_videos_that_were_added(
    engine: RecommendationEngine, checkpoint: Checkpoint, reference: ReferenceRecommender
) -> None:
    """It has read them from no checkpoint: who added them need not do it again."""
    assert await engine.start() == checkpoint.info
    requests = [
        *requests_of(61, 5, 40, count=200),
        list_request([watch("u", "1", video_id="fresh")], count=ITEMS),
    ]
    assert_same_lists(await engine.recommend(requests), reference.recommend(requests))
    await engine.close()


async def test_a_start_that_is_given_up_leaves_no_process(checkpoint: Checkpoint) -> None:
    """A daemon that is stopped while its engine starts does not wait for it, and what came up goes down."""
    engine = RecommendationEngine(EngineOptions(checkpoint=checkpoint.directory, **little_memory(0.1)))
    before = children()
    start = asyncio.create_task(engine.start())
    await eventually(lambda: bool(children() - before), "an engine process", within=60)
    started = children() - before
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await eventually(lambda: not any(map(is_running, started)), "the end of the process", within=120)


async def test_a_damaged_checkpoint_is_told_before_anything_starts(damaged_checkpoint: Path) -> None:
    """By the name of the file that is damaged."""
    engine = RecommendationEngine(EngineOptions(checkpoint=damaged_checkpoint))
    with pytest.raises(InputError, match=r"model\.safetensors: digest is"):
        await engine.start()
    assert engine.process_ids == []
    with pytest.raises(InputError, match="no such checkpoint directory"):
        RecommendationEngine(EngineOptions(checkpoint=damaged_checkpoint / "not here"))


def children() -> set[int]:
    """The engine processes that this process has started."""
    return {
        one.pid for one in multiprocessing.active_children() if one.name.startswith("EngineCore") and one.pid
    }
