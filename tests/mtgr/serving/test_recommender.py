"""Promises of mtgr.serving.recommender, kept by a real engine: the reference's lists, for calls that overlap."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from behaviors import NOW_MS, behavior, behaviors_of
from serving import ITEMS, assert_same_lists

from mtgr.checkpoint import Checkpoint
from mtgr.errors import EngineFailed, InputError, RequestRefused
from mtgr.pipeline import UserBehaviorInferencePipeline
from mtgr.recommendations import Recommendations
from mtgr.requests import AddedVideos, ListResult
from mtgr.serving.options import EngineOptions
from mtgr.serving.recommender import VllmRecommender, create_vllm_engine

KNOWN = {f"v{number}" for number in range(ITEMS)}

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def directory(checkpoints: dict[str, Checkpoint]) -> Path:
    """Of the model that has everything, over sequences of up to 80 events."""
    return checkpoints["everything"].directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(directory: Path) -> AsyncIterator[VllmRecommender]:
    async with create_vllm_engine(
        directory, max_num_seqs=64, dtype="float32", kv_cache_gib=0.05, clock=lambda: NOW_MS
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(directory: Path) -> Iterator[UserBehaviorInferencePipeline]:
    """The same sessions, with lists by plain torch."""
    with UserBehaviorInferencePipeline(directory, clock=lambda: NOW_MS) as pipeline:
        yield pipeline


def assert_alike(got: Recommendations, wanted: Recommendations) -> None:
    """The same list in all but how it was made; videos may change places where they tie."""
    assert (got.user_id, got.session_id, got.model) == (wanted.user_id, wanted.session_id, wanted.model)
    assert [item.rank for item in got.items] == [item.rank for item in wanted.items]
    ours, theirs = (
        ListResult(
            [item.video_id for item in one.items], [item.score for item in one.items], one.sequence_length, 0
        )
        for one in (got, wanted)
    )
    assert_same_lists([ours], [theirs])


async def test_lists_are_those_of_the_reference(
    engine: VllmRecommender, plain: UserBehaviorInferencePipeline
) -> None:
    """For sessions of all lengths at once, as they grow, are cut and are told again from the beginning."""
    users = {f"u{number}": behaviors_of(number, 20 + 4 * number) for number in range(16)}
    for share in (0.3, 0.6, 1.0):
        got = await asyncio.gather(
            *(
                engine.generate_recommendations(user, "s", told[: int(share * len(told))], 12)
                for user, told in users.items()
            )
        )
        for (user, told), one in zip(users.items(), got, strict=True):
            wanted = plain.infer_recommendations(
                user, "s", told[: int(share * len(told))], 12, use_vllm=False
            )
            assert_alike(one, wanted)
            assert one.latency_ms > 0
    assert max(one.sequence_length for one in got) > 64


async def test_behaviours_in_one_call_or_in_several_give_the_same_list(
    engine: VllmRecommender, plain: UserBehaviorInferencePipeline
) -> None:
    """Those of several calls are found in the cache when the next one comes."""
    told = behaviors_of(100, 24)
    for one in told:
        bit = await engine.generate_recommendations("bits", "s", [one], 5)
    at_once = await engine.generate_recommendations("bits", "at once", told, 5)
    assert at_once.sequence_length == bit.sequence_length
    assert_alike(bit, plain.infer_recommendations("bits", "s", told, 5, use_vllm=False))
    assert_alike(at_once, plain.infer_recommendations("bits", "at once", told, 5, use_vllm=False))
    assert at_once.cached_tokens == 0
    assert bit.cached_tokens > bit.sequence_length / 2


async def test_profiles_and_slates_are_those_of_the_reference(
    engine: VllmRecommender, plain: UserBehaviorInferencePipeline
) -> None:
    """A profile is kept for its session, changes the list, and has its own where another is given."""
    told = behaviors_of(150, 10)
    lists = []
    for profile in ({"country": "jp", "age": 20}, None, {"country": "fr", "age": 70}):
        got = await engine.generate_recommendations("known", "s", told, 8, profile=profile)
        assert_alike(got, plain.infer_recommendations("known", "s", told, 8, use_vllm=False, profile=profile))
        slate = await engine.generate_recommendations("known", "s", [], 6, strategy="slate")
        assert_alike(
            slate, plain.infer_recommendations("known", "s", [], 6, use_vllm=False, strategy="slate")
        )
        lists.append([item.score for item in got.items])
    assert lists[0] == pytest.approx(lists[1], abs=1e-4)
    assert lists[0] != pytest.approx(lists[2], abs=1e-4)


async def test_calls_of_one_session_may_overlap(
    engine: VllmRecommender, plain: UserBehaviorInferencePipeline
) -> None:
    """Each list is that after its own behaviours and those of the calls before it."""
    told = behaviors_of(200, 30)
    got = await asyncio.gather(
        *(engine.generate_recommendations("one", "s", [behavior], 5) for behavior in told)
    )
    for one, result in zip(told, got, strict=True):
        assert_alike(result, plain.infer_recommendations("one", "s", [one], 5, use_vllm=False))


async def test_calls_that_overlap_are_batched(engine: VllmRecommender) -> None:
    """Lists that are asked for together take far less time than one after the other."""

    async def one(number: int) -> None:
        await engine.generate_recommendations("batched", str(number), behaviors_of(number, 10), 5)

    async def by_turns() -> None:
        for number in range(48):
            await one(number)

    async def together() -> None:
        await asyncio.gather(*(one(number) for number in range(48)))

    await together()  # what follows is one token a session
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for batched in (False, True) * 3:
        began = time.perf_counter()
        await (together() if batched else by_turns())
        seconds[batched].append(time.perf_counter() - began)
    assert min(seconds[True]) < min(seconds[False]) / 2


async def test_what_cannot_be_served_is_told_and_hurts_no_other(engine: VllmRecommender) -> None:
    """Wrong arguments, and lists that the model does not have, beside one that it has."""
    outcomes = await asyncio.gather(
        engine.generate_recommendations("u", "new", [], 5),
        engine.generate_recommendations("u", "s", [behavior(watch_duration=-1)], 5),
        engine.generate_recommendations("u", "s", [behavior()], 10_000),
        engine.generate_recommendations("u", "s", [behavior()], 5),
        return_exceptions=True,
    )
    refused, wrong, many, good = outcomes
    assert isinstance(refused, RequestRefused)
    assert isinstance(wrong, InputError)
    assert isinstance(many, RequestRefused)
    assert isinstance(good, Recommendations)
    assert len(good.items) == 5
    assert engine.forget_session("u", "s")
    with pytest.raises(RequestRefused, match="history is empty"):
        await engine.generate_recommendations("u", "s", [], 5)


async def test_videos_that_are_added_are_recommended(
    engine: VllmRecommender, plain: UserBehaviorInferencePipeline
) -> None:
    """As by plain torch, by what their attributes say, in lists of all videos and in histories."""
    new = [
        {"video_id": "fresh", "attributes": {"tags": ["music"], "author": "someone", "seconds": 30.0}},
        {"video_id": "v3"},
    ]
    assert await engine.add_videos(new) == plain.add_videos(new) == AddedVideos(1, 1, [])
    for number, told in enumerate((behaviors_of(300, 6), [behavior(video_id="fresh")])):
        unseen = ITEMS + 1 - len({one["video_id"] for one in told if one["video_id"] in ("fresh", *KNOWN)})
        got = await engine.generate_recommendations("new", str(number), told, unseen)
        assert_alike(got, plain.infer_recommendations("new", str(number), told, unseen, use_vllm=False))
        assert ("fresh" in {item.video_id for item in got.items}) == (number == 0)
    with pytest.raises(InputError, match=r"videos\[0\]\.video_id is missing"):
        await engine.add_videos([{}])


async def test_it_is_used_in_one_event_loop(engine: VllmRecommender) -> None:
    """Another one is told so, instead of waiting for ever."""

    def elsewhere() -> None:
        asyncio.run(engine.generate_recommendations("u", "s", [behavior()], 5))

    with pytest.raises(RuntimeError, match="in another event loop"):
        await asyncio.to_thread(elsewhere)


async def test_an_engine_that_was_closed_says_so(directory: Path) -> None:
    """Also one that never started, or that was starting; closing again does nothing."""
    never = create_vllm_engine(directory)
    await never.close()
    starting = create_vllm_engine(directory)
    call = asyncio.create_task(starting.generate_recommendations("u", "s", [behavior()], 5))
    await asyncio.sleep(0)
    await starting.close()
    with pytest.raises(EngineFailed, match="the engine was closed"):
        await call
    for closed in (never, starting):
        await closed.close()
        with pytest.raises(EngineFailed, match="the engine was closed"):
            await closed.generate_recommendations("u", "s", [behavior()], 5)


async def test_wrong_arguments_are_told_before_anything_is_started(directory: Path, tmp_path: Path) -> None:
    """The error names the argument as `create_vllm_engine` has it."""
    with pytest.raises(InputError, match=r"^gpu_memory_utilization = 0: expected a number, above 0"):
        create_vllm_engine(directory, gpu_memory_utilization=0)
    with pytest.raises(InputError, match=r"^quantization = 'none': expected"):
        create_vllm_engine(directory, quantization="none")
    with pytest.raises(InputError, match=r"^kv_cache_dtype = 'int4': expected"):
        create_vllm_engine(directory, kv_cache_dtype="int4")
    with pytest.raises(InputError, match=r"^tensor_parallel_size = 0: expected an integer, at least 1"):
        create_vllm_engine(directory, tensor_parallel_size=0)
    with pytest.raises(InputError, match="no such checkpoint directory"):
        create_vllm_engine(tmp_path / "nowhere")


async def test_what_is_left_out_is_as_the_options_have_it() -> None:
    """The defaults of `create_vllm_engine` are those of an engine of the daemon, but for the number format."""
    parameters = inspect.signature(create_vllm_engine).parameters
    for name in (
        "tensor_parallel_size",
        "max_num_batched_tokens",
        "max_num_seqs",
        "quantization",
        "kv_cache_gib",
        "kv_cache_dtype",
    ):
        assert parameters[name].default == getattr(EngineOptions(checkpoint=Path()), name), name
