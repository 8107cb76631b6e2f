"""Promises of mtgr.pipeline: lists for applications, from any thread, with plain torch or an engine of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from behaviors import NOW_MS, behavior, behaviors_of
from checkpoints import ITEMS, MAX_EVENTS, tiny_checkpoint
from generators import Script, ScriptedGenerator
from records import eventually
from serving import random_checkpoint

from mtgr import pipeline as pipeline_module
from mtgr.behavior_sessions import BehaviorSessions
from mtgr.errors import EngineFailed, InputError, RequestRefused
from mtgr.pipeline import UserBehaviorInferencePipeline
from mtgr.recommendations import Recommendations
from mtgr.reference import ReferenceRecommender
from mtgr.requests import AddedVideos, ListResult, ModelInfo
from mtgr.serving.on_demand import OnDemandEngine
from mtgr.serving.options import EngineOptions

MakePipeline = Callable[..., UserBehaviorInferencePipeline]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of random weights, over the videos v0 to v299 and sequences of up to 48 events."""
    return tiny_checkpoint(tmp_path_factory.mktemp("pipeline") / "checkpoint")


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> ReferenceRecommender:
    return ReferenceRecommender(checkpoint)


@pytest.fixture
def make(checkpoint: Path) -> Iterator[MakePipeline]:
    """Makes pipelines whose clock stands still, and closes them."""
    made: list[UserBehaviorInferencePipeline] = []

    def one(**changes: Any) -> UserBehaviorInferencePipeline:
        made.append(UserBehaviorInferencePipeline(checkpoint, **{"clock": lambda: NOW_MS} | changes))
        return made[-1]

    yield one
    for pipeline in made:
        pipeline.close()


class HeldEngine(ScriptedGenerator):
    """An engine that lets go of what it was asked when it is closed, as a real one does."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.gate = script.gate

    async def start(self) -> ModelInfo:
        self.loop = asyncio.get_running_loop()
        return await super().start()

    async def close(self) -> None:
        await super().close()
        self.gate.set()

    def open_gate(self) -> None:
        """From any thread."""
        self.loop.call_soon_threadsafe(self.gate.set)


@pytest.fixture
def engines(script: Script, monkeypatch: pytest.MonkeyPatch) -> list[HeldEngine]:
    """The engines that were made."""
    engines: list[HeldEngine] = []

    def engine_of(options: EngineOptions) -> OnDemandEngine:
        engines.append(HeldEngine(script))
        return OnDemandEngine(engines[-1])

    monkeypatch.setattr(pipeline_module, "engine_of", engine_of)
    return engines


@pytest.fixture
def script(reference: ReferenceRecommender) -> Script:
    """What the engines do."""
    return Script(reference)


def alike(one: Recommendations, other: Recommendations) -> bool:
    """Whether two lists are the same, however they were made."""
    return (one.items, one.model, one.sequence_length) == (other.items, other.model, other.sequence_length)


def test_a_list_is_that_of_the_model(make: MakePipeline, reference: ReferenceRecommender) -> None:
    """For the events that the behaviours stand for, with the facts of how it was made."""
    told = behaviors_of(1, 60)
    result = make().infer_recommendations("u", "s", told, 7, use_vllm=False)
    sessions = BehaviorSessions(MAX_EVENTS, max_sessions=1, clock=lambda: NOW_MS)
    (wanted,) = reference.recommend([sessions.request("u", "s", told, 7)])
    assert isinstance(wanted, ListResult)
    assert [item.video_id for item in result.items] == wanted.video_ids
    assert [item.score for item in result.items] == pytest.approx(wanted.scores, abs=1e-5)
    assert [item.rank for item in result.items] == list(range(1, 8))
    assert (result.user_id, result.session_id) == ("u", "s")
    assert (result.model.name, result.model.version) == ("random", reference.checkpoint.version)
    assert (result.sequence_length, result.cached_tokens) == (wanted.sequence_length, 0)
    assert result.latency_ms > 0


@pytest.mark.parametrize("use_vllm", [False, True])
def test_behaviours_in_one_call_or_in_several_give_the_same_list(
    make: MakePipeline, script: Script, engines: list[HeldEngine], use_vllm: bool
) -> None:
    """Told at once, bit by bit, or each time from the beginning."""
    told = behaviors_of(2, 70)
    pipeline = make()
    at_once = pipeline.infer_recommendations("u", "at once", told, use_vllm=use_vllm)
    for end in range(10, 71, 10):
        bits = pipeline.infer_recommendations("u", "bits", told[end - 10 : end], use_vllm=use_vllm)
        again = pipeline.infer_recommendations("u", "again", told[:end], use_vllm=use_vllm)
        assert alike(bits, again)
    assert alike(bits, at_once)


def test_both_ways_share_their_sessions(
    make: MakePipeline, script: Script, engines: list[HeldEngine]
) -> None:
    """What was told to one is known to the other."""
    pipeline = make()
    told = behaviors_of(3, 20)
    first = pipeline.infer_recommendations("u", "s", told[:10])
    second = pipeline.infer_recommendations("u", "s", told[10:], use_vllm=False)
    assert first.sequence_length < second.sequence_length
    assert alike(second, pipeline.infer_recommendations("u", "s", []))
    assert pipeline.forget_session("u", "s")
    assert not pipeline.forget_session("u", "s")
    assert alike(first, pipeline.infer_recommendations("u", "s", told[:10], use_vllm=False))


@pytest.mark.parametrize("use_vllm", [False, True])
async def test_a_running_event_loop_may_ask_either_way(
    make: MakePipeline, script: Script, engines: list[HeldEngine], use_vllm: bool
) -> None:
    """Awaiting lists, many at once, or waiting for one."""
    pipeline = make()
    told = [behaviors_of(number, 5 + number) for number in range(8)]
    awaited = await asyncio.gather(
        *(
            pipeline.infer_recommendations_async(f"u{number}", "s", one, 5, use_vllm=use_vllm)
            for number, one in enumerate(told)
        )
    )
    for number, one in enumerate(told):
        waited = pipeline.infer_recommendations(f"v{number}", "s", one, 5, use_vllm=use_vllm)
        assert [item.video_id for item in awaited[number].items] == [item.video_id for item in waited.items]


@pytest.mark.parametrize("use_vllm", [False, True])
def test_many_threads_may_ask_at_once(
    make: MakePipeline, script: Script, engines: list[HeldEngine], use_vllm: bool
) -> None:
    """Each gets the list of its own session, from one engine."""
    pipeline = make()
    told = [behaviors_of(number, 20) for number in range(16)]

    def ask(number: int) -> Recommendations:
        for end in (5, 10, 20):
            result = pipeline.infer_recommendations(
                f"u{number}", "s", told[number][:end], 5, use_vllm=use_vllm
            )
        return result

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, range(16)))
    for number, result in enumerate(results):
        alone = pipeline.infer_recommendations("alone", str(number), told[number], 5, use_vllm=False)
        assert alike(result, alone)
    assert script.starts == use_vllm


def test_the_calls_of_one_session_are_not_mixed_up(make: MakePipeline) -> None:
    """Told by several threads, it has all of what they told, each event once."""
    pipeline = make()
    told = [behavior(f"v{number}", timestamp_ms=NOW_MS) for number in range(30)]
    with ThreadPoolExecutor(6) as pool:
        for _ in pool.map(
            lambda one: pipeline.infer_recommendations("u", "s", [one], 1, use_vllm=False), told + told
        ):
            pass
    result = pipeline.infer_recommendations("u", "s", [], ITEMS - 30, use_vllm=False)
    assert result.sequence_length == 30
    assert {item.video_id for item in result.items}.isdisjoint(one["video_id"] for one in told)


@pytest.mark.parametrize("use_vllm", [False, True])
def test_a_list_that_cannot_be_made_is_refused(
    make: MakePipeline, script: Script, engines: list[HeldEngine], use_vllm: bool
) -> None:
    """Of more videos than there are, or after nothing at all; the session goes on."""
    pipeline = make()
    with pytest.raises(RequestRefused, match="history is empty, where at least 1 event is wanted"):
        pipeline.infer_recommendations("u", "s", [], 5, use_vllm=use_vllm)
    with pytest.raises(RequestRefused, match=rf"count is {ITEMS}, but {ITEMS - 1} of the catalog's"):
        pipeline.infer_recommendations("u", "s", [behavior()], ITEMS, use_vllm=use_vllm)
    assert pipeline.infer_recommendations("u", "s", [], 5, use_vllm=use_vllm).sequence_length == 1


async def test_a_wrong_argument_is_told_either_way(make: MakePipeline) -> None:
    """Before anything is loaded or started, and without a trace in the session."""
    pipeline = make()
    wrong = [behavior(), behavior(watch_percentage=83)]
    with pytest.raises(InputError, match=r"behaviors\[1\]\.watch_percentage = 83: expected a number"):
        pipeline.infer_recommendations("u", "s", wrong, 5)
    with pytest.raises(InputError, match=r"num_recommendations = 0: expected an integer, at least 1"):
        await pipeline.infer_recommendations_async("u", "s", [behavior()], 0)
    with pytest.raises(RequestRefused, match="history is empty"):
        pipeline.infer_recommendations("u", "s", [], 5, use_vllm=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs = 0: expected an integer, at least 1"),
        (
            {"gpu_memory_utilization": 30},
            "gpu_memory_utilization = 30: expected a number, above 0 and at most 1",
        ),
        ({"dtype": "float8"}, "dtype = 'float8': expected one of auto, b"),
        ({"max_seqs": 3}, "unknown argument 'max_seqs'; did you mean max_num_seqs?"),
        ({"max_sessions": 0}, "max_sessions = 0: expected an integer, at least 1"),
    ],
)
def test_a_pipeline_of_wrong_options_is_none(
    make: MakePipeline, changes: dict[str, Any], message: str
) -> None:
    """It is told when it is made, not with the first list."""
    with pytest.raises(InputError) as raised:
        make(**changes)
    assert str(raised.value).startswith(message)


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With the command that makes one."""
    with pytest.raises(InputError, match="no such checkpoint directory; `mtgr-stream train"):
        UserBehaviorInferencePipeline(tmp_path / "nowhere")


def test_without_vllm_plain_torch_serves(make: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who asks for vLLM is told how to install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pipeline = make()
    with pytest.raises(InputError, match=r"vLLM is not installed: install mtgr-stream\[cpu\]"):
        pipeline.infer_recommendations("u", "s", [behavior()], 5)
    assert len(pipeline.infer_recommendations("u", "s", [], 5, use_vllm=False).items) == 5


def test_videos_that_are_added_are_recommended_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is loaded already and by what is loaded later, as long as the model has places for them."""
    directory = random_checkpoint(tmp_path / "spare", max_events=MAX_EVENTS, n_items=ITEMS, spare_items=2)
    engine = ScriptedGenerator(Script(ReferenceRecommender(directory)))
    monkeypatch.setattr(pipeline_module, "engine_of", lambda options: OnDemandEngine(engine))
    with UserBehaviorInferencePipeline(directory, clock=lambda: NOW_MS) as pipeline:
        first = pipeline.infer_recommendations("u", "s", [behavior("v1")], ITEMS - 1, use_vllm=False)
        assert len(first.items) == ITEMS - 1
        added = 0
        for videos, outcome in (
            ([{"video_id": "fresh"}, {"video_id": "v1"}], AddedVideos(1, 1, [])),
            ([{"video_id": "more"}, {"video_id": "too many"}], AddedVideos(1, 0, ["too many"])),
        ):
            assert pipeline.add_videos(videos) == outcome
            added += outcome.added
            lists = [
                pipeline.infer_recommendations("u", "s", [], ITEMS - 1 + added, use_vllm=use_vllm)
                for use_vllm in (True, False)
            ]
            assert alike(*lists)
            assert videos[0]["video_id"] in {item.video_id for item in lists[0].items}
        with pytest.raises(InputError, match=r"videos\[0\] = 3: expected a mapping"):
            pipeline.add_videos([3])  # type: ignore[list-item]
    with pytest.raises(EngineFailed, match="closed"):
        pipeline.add_videos([{"video_id": "late"}])


@pytest.mark.parametrize("use_vllm", [False, True])
async def test_profiles_and_slates_are_asked_for_either_way(
    make: MakePipeline, script: Script, engines: list[HeldEngine], use_vllm: bool
) -> None:
    """As the same model makes them of a request that says so."""
    pipeline = make()
    told, wishes = behaviors_of(5, 12), {"profile": {"country": "jp"}, "strategy": "slate"}
    waited = pipeline.infer_recommendations("u", "s", told, 6, use_vllm=use_vllm, **wishes)
    awaited = await pipeline.infer_recommendations_async("v", "s", told, 6, use_vllm=use_vllm, **wishes)
    sessions = BehaviorSessions(MAX_EVENTS, max_sessions=1, clock=lambda: NOW_MS)
    (wanted,) = script.reference.recommend([sessions.request("u", "s", told, 6, **wishes)])  # type: ignore[arg-type]
    assert isinstance(wanted, ListResult)
    for result in (waited, awaited):
        assert [item.video_id for item in result.items] == wanted.video_ids


def test_an_engine_that_broke_is_started_again(
    make: MakePipeline, script: Script, engines: list[HeldEngine]
) -> None:
    """The call that met it gets EngineFailed, the next one its list; nothing of the session is lost."""
    pipeline = make()
    script.breaks = lambda requests: True
    with pytest.raises(EngineFailed, match="the scripted engine died"):
        pipeline.infer_recommendations("u", "s", [behavior()], 5)
    script.breaks = lambda requests: False
    assert pipeline.infer_recommendations("u", "s", [], 5).sequence_length == 1
    assert script.starts == 2


async def test_who_waits_when_it_is_closed_is_told(
    make: MakePipeline, script: Script, engines: list[HeldEngine]
) -> None:
    """And who asks later; closing again does nothing, and the pipeline's thread is gone."""
    pipeline = make()
    script.gate.clear()
    calls = [
        asyncio.create_task(pipeline.infer_recommendations_async("u", str(number), [behavior()]))
        for number in range(3)
    ]
    await eventually(lambda: len(script.batches) == 3, "the calls to be under way")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pipeline.infer_recommendations, "v", "s", [behavior()])
        await eventually(lambda: len(script.batches) == 4, "the blocking call to be under way")
        pipeline.close()
        with pytest.raises(EngineFailed):
            waiting.result()
    assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [
        EngineFailed
    ] * 3
    pipeline.close()
    for use_vllm in (False, True):
        with pytest.raises(EngineFailed, match="the pipeline was closed"):
            pipeline.infer_recommendations("u", "s", [], 5, use_vllm=use_vllm)
    assert "recommendation-pipeline" not in {thread.name for thread in threading.enumerate()}


async def test_a_call_that_is_given_up_disturbs_no_other(
    make: MakePipeline, script: Script, engines: list[HeldEngine]
) -> None:
    """As when a web request is gone before its list is made."""
    pipeline = make()
    script.gate.clear()
    gone, kept = (
        asyncio.create_task(pipeline.infer_recommendations_async(user, "s", [behavior()], 5)) for user in "uv"
    )
    await eventually(lambda: len(script.batches) == 2, "both calls to be under way")
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    engines[0].open_gate()
    assert len((await kept).items) == 5


def test_importing_it_loads_neither_torch_nor_vllm() -> None:
    """An application that asks for no list yet does not wait ten seconds for them."""
    code = "import sys, mtgr.pipeline; print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
