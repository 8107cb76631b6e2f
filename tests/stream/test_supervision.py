"""Promises of stream.supervision: engines break, lists are made all the same, and only the guilty are refused."""

from __future__ import annotations

import asyncio

import pytest
from engines import MODEL, Engines
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgr.errors import EngineFailed, InputError
from mtgr.requests import AddedVideos, ListOutcome, ListRefusal, ListRequest, ListResult, ModelInfo, NewVideo
from stream import supervision
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.supervision import SupervisedGenerator


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 0.001)


def supervised(
    engines: Engines, *, timeout: float = 20, max_restarts: int = 5
) -> tuple[SupervisedGenerator, Metrics, Health]:
    metrics, health = Metrics(), Health()
    generator = SupervisedGenerator(
        engines, timeout_seconds=timeout, max_restarts=max_restarts, metrics=metrics, health=health
    )
    return generator, metrics, health


def requests(*users: str) -> list[ListRequest]:
    return [ListRequest(user, b"", b"", 1) for user in users]


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


def is_for(outcome: ListOutcome, user: str) -> bool:
    return isinstance(outcome, ListResult) and outcome.video_ids == [f"for {user}"]


async def test_what_a_sound_engine_makes_goes_through() -> None:
    """A sound engine is started once, its outcomes come back in order, and close leaves nothing behind."""
    engines = Engines()
    generator, metrics, health = supervised(engines)
    assert await generator.start() == MODEL
    assert health.is_ready
    outcomes = await generator.recommend(requests("a", "b"))
    assert is_for(outcomes[0], "a")
    assert is_for(outcomes[1], "b")
    await generator.close()
    await generator.close()
    assert len(engines.made) == 1
    assert not engines.alive
    assert value(metrics, "mtgr_engine_restarts_total") == 0


async def test_a_failed_batch_is_served_by_a_restarted_engine() -> None:
    """An engine that dies under a batch costs its users time, and nobody a refusal."""
    engines = Engines()
    generator, metrics, health = supervised(engines)
    await generator.start()
    engines.gate.clear()
    batch = asyncio.create_task(generator.recommend(requests("a", "b")))
    await engines.until(lambda: len(engines.batches) == 1, "the batch")
    engines.made[0].break_down()
    engines.gate.set()
    outcomes = await batch
    assert [is_for(outcome, user) for outcome, user in zip(outcomes, "ab", strict=True)] == [True, True]
    assert engines.batches == [["a", "b"], ["a", "b"]]
    assert engines.made[0].closed
    assert len(engines.alive) == 1
    assert health.is_ready
    assert value(metrics, "mtgr_engine_restarts_total") == 1
    assert value(metrics, "mtgr_generation_failures_total") == 1
    await generator.close()


async def test_a_poisonous_user_is_refused_and_the_others_are_served() -> None:
    """The one request that breaks every engine is refused by name; the rest of its batch is served."""
    engines = Engines(poison={"b"})
    generator, _, health = supervised(engines)
    await generator.start()
    outcomes = await generator.recommend(requests("a", "b", "c"))
    assert is_for(outcomes[0], "a")
    refusal = outcomes[1]
    assert isinstance(refusal, ListRefusal)
    assert (refusal.error, "'b'" in refusal.message) == ("EngineFailed", True)
    assert is_for(outcomes[2], "c")
    assert engines.batches == [["a", "b", "c"], ["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert is_for((await generator.recommend(requests("d")))[0], "d")
    assert health.is_ready
    await generator.close()


async def test_a_poisonous_user_alone_is_refused_after_a_second_try() -> None:
    """A batch of one that breaks two engines is refused, and the next user finds a sound engine."""
    engines = Engines(poison={"b"})
    generator, _, _ = supervised(engines)
    await generator.start()
    (refusal,) = await generator.recommend(requests("b"))
    assert isinstance(refusal, ListRefusal)
    assert is_for((await generator.recommend(requests("a")))[0], "a")
    assert engines.batches == [["b"], ["b"], ["a"]]
    assert len(engines.alive) == 1
    await generator.close()


async def test_a_crash_under_several_batches_is_one_failure_and_one_restart() -> None:
    """However many batches an engine takes down with it, it is restarted once, and counts once towards the limit."""
    engines = Engines()
    generator, metrics, _ = supervised(engines, max_restarts=1)
    await generator.start()
    engines.gate.clear()
    batches = [asyncio.create_task(generator.recommend(requests(f"u{number}"))) for number in range(8)]
    await engines.until(lambda: len(engines.batches) == 8, "eight batches")
    engines.made[0].break_down()
    engines.gate.set()
    outcomes = await asyncio.gather(*batches)
    assert all(is_for(outcome, f"u{number}") for number, (outcome,) in enumerate(outcomes))
    assert len(engines.made) == 2
    assert value(metrics, "mtgr_engine_restarts_total") == 1
    await generator.close()


async def test_nobody_else_is_tried_beside_a_suspect() -> None:
    """While a broken batch is tried again, new batches wait: else an innocent one could be blamed."""
    engines = Engines(poison={"b"})
    generator, _, _ = supervised(engines)
    await generator.start()
    engines.gate.clear()
    broken = asyncio.create_task(generator.recommend(requests("b", "c")))
    await engines.until(lambda: len(engines.batches) == 1, "the batch")
    engines.gate.set()
    await engines.until(lambda: len(engines.batches) == 2, "its second try")
    late = asyncio.create_task(generator.recommend(requests("a")))
    outcomes = await broken
    assert isinstance(outcomes[0], ListRefusal)
    assert is_for((await late)[0], "a")
    assert engines.batches == [["b", "c"], ["b", "c"], ["b"], ["c"], ["a"]]
    await generator.close()


async def test_a_hanging_engine_is_given_up() -> None:
    """A batch that is not answered in time counts as a failure, and a user who always hangs is refused."""
    engines = Engines(hanging={"h"})
    generator, _, _ = supervised(engines, timeout=0.3)
    await generator.start()
    served, refused = await generator.recommend(requests("a", "h"))
    assert is_for(served, "a")
    assert isinstance(refused, ListRefusal)
    assert "0.3 seconds (generator.request_timeout_seconds)" in refused.message
    assert len(engines.alive) == 1
    await generator.close()


async def test_an_engine_that_keeps_breaking_stops_the_daemon() -> None:
    """After max_restarts failures in a row it is over, with the last reason in the message."""
    engines = Engines()
    generator, _, health = supervised(engines, max_restarts=3)
    await generator.start()
    engines.made[0].break_down()
    engines.failing_starts = 100
    with pytest.raises(Fatal, match=r"4 times in a row \(generator.max_restarts = 3\): it does not start"):
        await generator.recommend(requests("a"))
    assert not health.is_ready
    await generator.close()
    assert not engines.alive
    assert all(engine.closed for engine in engines.made)


async def test_successes_forgive_failures() -> None:
    """A poisonous user now and then never adds up to the limit, as long as others are served between."""
    engines = Engines(poison={"p"})
    generator, _, _ = supervised(engines, max_restarts=3)
    await generator.start()
    for _ in range(5):
        assert isinstance((await generator.recommend(requests("p")))[0], ListRefusal)
        assert is_for((await generator.recommend(requests("a")))[0], "a")
    await generator.close()


async def test_a_slow_start_is_tried_again() -> None:
    """An engine that does not start at first is started again, and the daemon then has its model."""
    engines = Engines(failing_starts=3)
    generator, _, health = supervised(engines)
    assert await generator.start() == MODEL
    assert health.is_ready
    assert [engine.closed for engine in engines.made] == [True, True, True, False]
    await generator.close()


async def test_a_wrong_checkpoint_is_not_tried_again() -> None:
    """What the user has to mend is raised at once, with the half-started engine closed."""
    engines = Engines()

    async def start() -> ModelInfo:
        raise InputError("model.checkpoint: no such directory")

    def factory() -> object:
        engine = engines()
        engine.start = start  # type: ignore[method-assign]
        return engine

    generator, _, _ = supervised(factory)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"model\.checkpoint"):
        await generator.start()
    assert [engine.closed for engine in engines.made] == [True]


async def test_a_cancelled_batch_leaves_a_working_generator() -> None:
    """A batch given up while it waits or is recovered neither leaks an engine nor locks others out."""
    for moment in ("waiting", "recovering"):
        engines = Engines()
        generator, _, _ = supervised(engines)
        await generator.start()
        engines.gate.clear()
        batch = asyncio.create_task(generator.recommend(requests("a")))
        await engines.until(lambda engines=engines: len(engines.batches) == 1, "the batch")  # type: ignore[misc]
        if moment == "recovering":
            engines.made[0].break_down()
            await engines.until(lambda engines=engines: len(engines.batches) == 2, "its second try")  # type: ignore[misc]
        batch.cancel()
        await asyncio.gather(batch, return_exceptions=True)
        engines.gate.set()
        async with asyncio.timeout(20):
            assert is_for((await generator.recommend(requests("b")))[0], "b")
        assert len(engines.alive) == 1
        await generator.close()
        assert not engines.alive


async def test_a_cancelled_start_closes_what_it_started() -> None:
    """A stop while the engine starts leaves no process of it behind."""
    engines = Engines()
    generator, _, _ = supervised(engines)
    starting = asyncio.create_task(generator.start())
    await asyncio.sleep(0)  # into the engine's own start
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert [engine.closed for engine in engines.made] == [True]


users = st.sampled_from("abcdefgh")


@settings(max_examples=150)
@given(
    st.lists(st.lists(users, min_size=1, max_size=5, unique=True), min_size=1, max_size=6),
    st.sets(users, max_size=2),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_everyone_gets_an_outcome_and_only_the_guilty_a_refusal(
    batches: list[list[str]], poison: set[str], crashes: list[int]
) -> None:
    """With poisonous users and crashes at any moment, each request has its own outcome, and engines never overlap."""

    async def scenario() -> None:
        engines = Engines(poison=poison)
        generator, _, health = supervised(engines, max_restarts=100)
        await generator.start()
        tasks = [asyncio.create_task(generator.recommend(requests(*batch))) for batch in batches]
        crashing = (
            set(crashes) if not poison else set()
        )  # a crash beside a poisonous user may be laid to anyone
        for step in range(max(crashes, default=0) + 1):
            if step in crashing and engines.alive and not any(task.done() for task in tasks):
                engines.alive[0].break_down()
                crashing.clear()
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*tasks)
        for batch, batch_outcomes in zip(batches, outcomes, strict=True):
            for user, outcome in zip(batch, batch_outcomes, strict=True):
                assert isinstance(outcome, ListRefusal) if user in poison else is_for(outcome, user)
        assert health.is_ready
        assert len(engines.alive) == 1
        await generator.close()
        assert not engines.alive

    asyncio.run(scenario())


async def test_an_engine_closed_under_a_batch_fails_it() -> None:
    """A batch that a close overtakes raises or is served, and never hangs."""
    engines = Engines()
    generator, _, _ = supervised(engines, max_restarts=0)
    await generator.start()
    engines.gate.clear()
    batch = asyncio.create_task(generator.recommend(requests("a")))
    await engines.until(lambda: len(engines.batches) == 1, "the batch")
    engines.gate.set()
    await generator.close()
    async with asyncio.timeout(20):
        result = (await asyncio.gather(batch, return_exceptions=True))[0]
    assert isinstance(result, list | Fatal | EngineFailed)
    await generator.close()
    assert not engines.alive


# ---- videos


def new_videos(*video_ids: str) -> list[NewVideo]:
    return [NewVideo(video_id, f"about {video_id}".encode()) for video_id in video_ids]


async def test_new_videos_are_handed_to_every_later_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is restarted knows what the one before was told, in batches, before it is asked for a list."""
    monkeypatch.setattr(supervision, "_BATCH_VIDEOS", 2)
    engines = Engines(poison={"bad"})
    generator, _, _ = supervised(engines)
    await generator.start()
    assert await generator.add_videos(new_videos("a", "b", "c")) == AddedVideos(3, 0, [])
    assert await generator.add_videos(new_videos("c", "d")) == AddedVideos(1, 1, [])
    await generator.recommend(requests("bad"))
    assert len(engines.made) > 1
    told = {video.video_id: video.attributes for video in new_videos("a", "b", "c", "d")}
    assert all(engine.videos == told for engine in engines.made)


async def test_refused_videos_are_told_and_not_offered_again() -> None:
    """Videos for which there is no place are named, and take no place of others after a restart."""
    engines = Engines(places=2, poison={"bad"})
    generator, _, _ = supervised(engines)
    await generator.start()
    assert await generator.add_videos(new_videos("a", "b", "c")) == AddedVideos(2, 0, ["c"])
    await generator.recommend(requests("bad"))
    assert engines.alive[0].videos.keys() == {"a", "b"}


async def test_a_video_that_breaks_engines_is_left_out() -> None:
    """A video that breaks every engine is refused, and the others of its batch join."""
    engines = Engines(poison={"b"})
    generator, _, health = supervised(engines)
    await generator.start()
    assert await generator.add_videos(new_videos("a", "b", "c")) == AddedVideos(2, 0, ["b"])
    assert engines.alive[0].videos.keys() == {"a", "c"}
    assert health.is_ready
    assert is_for((await generator.recommend(requests("u")))[0], "u")


async def test_videos_under_way_when_the_engine_breaks_reach_the_next() -> None:
    """A batch of videos that an engine takes along when it dies is handed to its successor."""
    engines = Engines()
    generator, _, _ = supervised(engines)
    await generator.start()
    engines.gate.clear()
    adding = asyncio.create_task(generator.add_videos(new_videos("a")))
    serving = asyncio.create_task(generator.recommend(requests("u")))
    await engines.until(lambda: len(engines.batches) == 1, "the batch")
    engines.made[0].break_down()
    engines.gate.set()
    assert is_for((await serving)[0], "u")
    assert await adding == AddedVideos(1, 0, [])
    assert engines.alive[0].videos.keys() == {"a"}
