"""A part of the daemon that fails in a way that nobody has foreseen ends the daemon: it never goes on without it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from daemons import START_SECONDS, Deployment, inside
from events import EventMaker, all_outgoing, names
from generators import Script
from records import DEADLINE_SECONDS, produce

from mtgr.reference import ReferenceRecommender
from stream import changelog, committer
from stream.assignment import Assignment
from stream.commits import AtLeastOnce
from stream.committer import Committer
from stream.dispatch import Dispatcher
from stream.errors import Fatal
from stream.exactly_once import ExactlyOnce
from stream.partition import Partition
from stream.source import Source
from stream.state import RocksStore

_FAILING = Path(__file__).parents[1] / "support" / "failing.py"

SPOTS: dict[str, tuple[object, str]] = {
    "source: fold": (Partition, "fold"),
    "source: balance": (Source, "_balance"),
    "source: ends of paused partitions": (Source, "_watch_ends"),
    "dispatcher: take": (Dispatcher, "_take"),
    "a batch: make a list": (Partition, "make_list"),
    "a batch: publish": (AtLeastOnce, "publish"),
    "a batch: settle": (Partition, "settle"),
    "committer: take work": (Partition, "take_work"),
    "committer: cycle, at least once": (AtLeastOnce, "commit"),
    "committer: cycle, exactly once": (ExactlyOnce, "commit"),
    "committer: transaction": (ExactlyOnce, "_commit"),
    "committer: changelog": (changelog, "append"),
    "committer: files": (RocksStore, "apply"),
    "committer: done": (Partition, "committed"),
    "committer: idle": (Committer, "_ask_kafka"),
    "restore": (changelog, "restore"),
    "restore: begin": (Partition, "begin"),
    "assigned": (Assignment, "_begin"),
}


@pytest.mark.parametrize("spot", SPOTS)
async def test_unforeseen_error_ends_the_daemon(
    spot: str, deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part raises what it should not, the daemon ends with that error, and says why it is not alive."""
    monkeypatch.setattr(committer, "_IDLE_CHECK_SECONDS", 0.3)
    owner, function = SPOTS[spot]

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"planted: {spot}")

    async def fail_later(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"planted: {spot}")

    is_async = asyncio.iscoroutinefunction(getattr(owner, function))
    monkeypatch.setattr(owner, function, fail_later if is_async else fail)
    changes = {"stream.delivery": "exactly_once" if owner is ExactlyOnce else "at_least_once"}
    async with inside(deployment, changes=changes, generator=Script(reference).make, wait=False) as running:
        events = EventMaker(seed=1, users=names("u", 20)).each()
        await produce(deployment.servers, deployment.names.events, all_outgoing(events))
        done, _ = await asyncio.wait({running.task}, timeout=DEADLINE_SECONDS)
        assert done, "the daemon goes on"
        with pytest.raises(Fatal, match=f"^unexpected TypeError: planted: {spot} "):
            running.task.result()
        assert "planted" in str(running.daemon.health.fatal_reason)


async def test_unforeseen_error_in_a_hand_over_ends_the_daemon(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Kafka client logs and forgets what its callbacks raise: the daemon does not."""

    async def fail(*args: Any) -> None:
        raise TypeError("planted")

    async with inside(deployment, "one", generator=Script(reference).make) as running:
        monkeypatch.setattr(Assignment, "_release", fail)
        async with inside(deployment, "two", generator=Script(reference).make, wait=False) as other:
            done, _ = await asyncio.wait({running.task}, timeout=DEADLINE_SECONDS)
            assert done, "the daemon goes on"
            with pytest.raises(Fatal, match="planted"):
                running.task.result()
            monkeypatch.undo()
            await other.ready()


async def test_process_of_a_failed_daemon_ends_with_code_1_and_a_traceback_in_its_log(
    deployment: Deployment, engine: Script
) -> None:
    """Whoever restarts daemons sees one that failed, and whoever reads its log sees where."""
    running = deployment.start(prefix=(sys.executable, str(_FAILING)))
    events = EventMaker(seed=1, users=names("u", 20)).each()
    await produce(deployment.servers, deployment.names.events, all_outgoing(events))
    assert await running.ended(START_SECONDS) == 1
    (failed,) = running.logged("daemon_failed")
    assert failed["exception"][0]["exc_type"] == "TypeError"
    assert "planted" in running.plain_output()[-1]
