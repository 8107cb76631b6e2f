"""Several engines as one: a user always meets the same, new videos meet all, and a failure is its own alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtgr.errors import EngineFailed
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ListResult, ModelInfo, NewVideo
from mtgr.serving import replicated_engine
from mtgr.serving.options import EngineOptions
from mtgr.serving.replicas import Replicas
from mtgr.serving.replicated_engine import ReplicatedEngine

MODEL = ModelInfo("tiny", "1", 16, 100)


class Replica:
    """An engine that says who it is."""

    def __init__(self, options: EngineOptions | None = None, *, places: int = 100) -> None:
        self.options = options
        self.places = places
        self.failed = False
        self.process_ids: list[int] = []
        self.starts = 0
        self.users: list[str] = []

    async def start(self) -> ModelInfo:
        self.starts += 1
        if self.failed and self.starts == 1:
            raise EngineFailed("it does not start")
        self.failed, self.process_ids = False, [1]
        return MODEL

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        await asyncio.sleep(0)
        if self.failed:
            raise EngineFailed("it broke")
        self.users += [request.user_id for request in requests]
        return [ListResult([request.user_id], [-1.0], 1, 0) for request in requests]

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        return AddedVideos(
            min(len(videos), self.places), 0, [video.video_id for video in videos[self.places :]]
        )

    async def close(self) -> None:
        self.process_ids = []


def requests_of(*users: str) -> list[ListRequest]:
    return [ListRequest(user, b"", b"", 10) for user in users]


USERS = [f"u{number}" for number in range(200)]


async def test_a_user_always_meets_the_same_replica() -> None:
    """Whoever asks beside them; all lists come back in the order they were asked for, and the work is divided."""
    replicas = Replicas([Replica(), Replica(), Replica()])
    for users in (USERS, USERS[::-1], USERS[::7]):
        outcomes = await replicas.recommend(requests_of(*users))
        assert [outcome.video_ids for outcome in outcomes if isinstance(outcome, ListResult)] == [
            [user] for user in users
        ]
    met = [set(replica.users) for replica in replicas.replicas]
    assert sum(map(len, met)) == len(USERS)
    assert min(map(len, met)) > len(USERS) / 5
    assert {Replicas([Replica(), Replica(), Replica()]).replica_of(user) for user in met[1]} == {1}


async def test_videos_join_all_replicas() -> None:
    """One that any of them has no place for counts as refused, as a user may be with that one."""
    replicas = Replicas([Replica(), Replica(places=1)])
    added = await replicas.add_videos([NewVideo("a"), NewVideo("b")])
    assert added == AddedVideos(1, 0, ["b"])


async def test_what_one_raises_comes_when_the_others_are_done() -> None:
    """So the others' caches have what their users sent, and nothing is left running."""
    replicas = Replicas([Replica(), Replica()])
    replicas.replicas[0].failed = True
    with pytest.raises(EngineFailed, match="it broke"):
        await replicas.recommend(requests_of(*USERS))
    assert replicas.replicas[1].users == [user for user in USERS if replicas.replica_of(user) == 1]


async def test_replicas_that_do_not_all_start_are_closed() -> None:
    """None is left to hold a device."""
    replicas = Replicas([Replica(), Replica()])
    replicas.replicas[1].failed = True
    with pytest.raises(EngineFailed, match="it does not start"):
        await replicas.start()
    assert [replica.process_ids for replica in replicas.replicas] == [[], []]


async def test_only_the_engine_that_failed_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on with what they have cached; each has devices of its own."""
    monkeypatch.setattr(replicated_engine, "RecommendationEngine", Replica)
    engine: Any = ReplicatedEngine(
        EngineOptions(checkpoint=Path("model"), tensor_parallel_size=2, replicas=3)
    )
    assert [list(one.options.devices) for one in engine.replicas] == [[0, 1], [2, 3], [4, 5]]
    assert await engine.start() == MODEL
    assert not engine.failed
    engine.replicas[1].failed = True
    assert engine.failed
    assert await engine.start() == MODEL
    assert not engine.failed
    assert [one.starts for one in engine.replicas] == [1, 2, 1]
