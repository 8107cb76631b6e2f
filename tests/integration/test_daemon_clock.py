"""A clock that is wrong, or is set right, does no harm: lists come as ever, and no state is lost or trusted wrongly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from daemons import deployed, inside
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, stored_states
from generators import Script
from records import Outgoing, TopicNames, produce, read_to_end
from structlog.testing import capture_logs

from mtgr.reference import ReferenceRecommender

_DAY = 86_400.0
_real_ns = time.time_ns


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_clock_jumps_do_no_harm(
    delivery: str,
    kafka: str,
    topic_names: TopicNames,
    checkpoint: Path,
    reference: ReferenceRecommender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon's clock jumps two days forward and a month back while it runs: everybody gets their lists in order, no
    time is below zero; files that say to be of another day are restored from the changelog."""
    ahead = 0.0
    monkeypatch.setattr(time, "time", lambda: _real_ns() / 1e9 + ahead)
    monkeypatch.setattr(time, "time_ns", lambda: _real_ns() + int(ahead * 1e9))
    maker = EventMaker(seed=4, users=names("u", 20))
    script = Script(reference)
    with deployed(kafka, topic_names, checkpoint, tmp_path) as deployment:

        async def go_on() -> None:
            now_ms = _real_ns() // 1_000_000  # the producers' clocks are right
            records = all_outgoing(maker.each())
            timed = [Outgoing(one.key, one.value, timestamp_ms=now_ms) for one in records]
            await produce(kafka, topic_names.events, timed)
            await all_served(kafka, topic_names)
            await all_committed(kafka, topic_names)

        changes = {"stream.delivery": delivery}
        async with inside(deployment, changes=changes, generator=script.make) as running:
            await go_on()
            for ahead in (2 * _DAY, -30 * _DAY, 2 * _DAY):  # noqa: B007  the clock reads it
                await go_on()
            assert running.metric("commit_failures_total") == 0
            assert running.metric("restore_seconds_count") == 2
        ahead = 0.0
        with capture_logs() as logs:
            async with inside(deployment, changes=changes, generator=script.make):
                await go_on()
        reasons = [entry["reason"] for entry in logs if entry["event"] == "state_files_replaced"]
        assert len(reasons) == 2
        assert all("written 48 hours from now" in reason for reason in reasons)
        outcome = await all_served(kafka, topic_names)
        outcome.check_order()
        outcome.check_lists(reference)
        assert all(one.value.latency_ms >= 0 for one in outcome.lists)
        outcome.check_state(stored_states(deployment.state_directory(), topic_names))
        outcome.check_state(changelog_states(await read_to_end(kafka, topic_names.changelog)))
