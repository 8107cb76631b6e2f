"""Replicas that are each supervised: what breaks one costs its own users time, and nobody else anything."""

from __future__ import annotations

import asyncio

import pytest
from engines import Engines

from mtgr.requests import ListRefusal, ListRequest, ListResult, NewVideo
from mtgr.serving.replicas import Replicas
from stream import supervision
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.supervision import SupervisedGenerator

USERS = [f"u{number}" for number in range(20)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 0.001)


def supervised_pair(*engines: Engines) -> tuple[Replicas[SupervisedGenerator], Health]:
    health = Health(["generator", "generator-1"])
    metrics = Metrics()
    return Replicas(
        [
            SupervisedGenerator(
                factory,
                timeout_seconds=20,
                max_restarts=3,
                metrics=metrics,
                health=health,
                component=component,
            )
            for factory, component in zip(engines, ("generator", "generator-1"), strict=True)
        ]
    ), health


def requests(*users: str) -> list[ListRequest]:
    return [ListRequest(user, b"", b"", 1) for user in users]


async def test_users_of_other_replicas_do_not_wait_for_a_restart() -> None:
    """While one engine is broken and its restart fails, the lists of the other are made; health names the one."""
    first, second = Engines(), Engines()
    replicas, health = supervised_pair(first, second)
    await replicas.start()
    assert health.is_ready
    own = [[user for user in USERS if replicas.replica_of(user) == number] for number in (0, 1)]
    second.gate.clear()
    broken = asyncio.create_task(replicas.recommend(requests(*own[1])))
    await second.until(lambda: len(second.batches) == 1, "the batch")
    second.made[0].break_down()
    # its next engine is asked, and does not answer while the gate is closed
    await second.until(lambda: len(second.batches) == 2, "the batch on a restarted engine")
    outcomes = await replicas.recommend(requests(*own[0]))
    assert [outcome.video_ids for outcome in outcomes if isinstance(outcome, ListResult)] == [
        [f"for {user}"] for user in own[0]
    ]
    assert not broken.done()
    second.gate.set()
    assert all(isinstance(outcome, ListResult) for outcome in await broken)
    assert (len(first.made), len(second.made)) == (1, 2)
    await replicas.close()
    assert not first.alive
    assert not second.alive


async def test_a_user_who_breaks_engines_breaks_only_theirs() -> None:
    """The refusal comes in the user's place, and the other replica has never been restarted."""
    first, second = Engines(poison={"u0"}), Engines(poison={"u0"})
    replicas, _ = supervised_pair(first, second)
    await replicas.start()
    await replicas.add_videos([NewVideo("new")])
    outcomes = await replicas.recommend(requests(*USERS))
    assert [user for user, one in zip(USERS, outcomes, strict=True) if isinstance(one, ListRefusal)] == ["u0"]
    made = [len(first.made), len(second.made)]
    assert made[1 - replicas.replica_of("u0")] == 1
    assert made[replicas.replica_of("u0")] > 1
    # the one that came after has the videos too
    assert all("new" in engines.alive[0].videos for engines in (first, second))
    await replicas.close()


async def test_a_replica_that_stays_broken_stops_the_daemon() -> None:
    """Its users would never be served."""
    first, second = Engines(), Engines()
    replicas, _ = supervised_pair(first, second)
    await replicas.start()
    second.failing_starts = 100
    second.made[0].break_down()
    with pytest.raises(Fatal, match="max_restarts"):
        await replicas.recommend(requests(*USERS))
    await replicas.close()
