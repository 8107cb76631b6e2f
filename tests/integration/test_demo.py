"""The demo's play against a real broker, with a small random model in place of the trained one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from checkpoints import tiny_checkpoint
from rich.console import Console

from schemas.events import Event, Profile, Watch
from schemas.videos import Video
from stream.demo.knowledge import Knowledge
from stream.demo.log import DemoLog
from stream.demo.play import Play

_USERS = 20


def _watches(first: int, count: int) -> list[Event]:
    return [
        Watch(
            event_id=f"e{n}",
            user_id=f"u{n % _USERS}",
            video_id=f"v{n % 97}",
            timestamp_ms=1_700_000_000_000 + n * 1_000,
            watch_seconds=10.0,
            watch_ratio=0.5,
        )
        for n in range(first, first + count)
    ]


async def test_demo_counts_what_went_through_kafka(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event is there, every user of the live events gets a list in time, and nothing is left behind."""
    monkeypatch.setenv("MTGR_STREAM__GENERATOR__KIND", "torch")
    live = _watches(400, 60)
    profiles: list[Event] = [
        Profile(event_id=f"p{n}", user_id=f"u{n}", timestamp_ms=0, attributes={"age": 30.0})
        for n in range(_USERS)
    ]
    log = DemoLog(
        training=tmp_path / "unused",
        training_events=0,
        known=Knowledge([Video(video_id="v1", attributes={"tag": "cats"})]),
        new_videos=[Video(video_id="new")],
        most_watched=[f"v{n}" for n in range(97)],
        history=[*profiles, *_watches(0, 400)],
        live=[*live, live[0]],
        skipped=0,
    )
    console = Console(record=True, width=200)
    play = Play(kafka, log, tiny_checkpoint(tmp_path / "checkpoint"), tmp_path, console)
    report = await play.run(seconds=3, rate=30)
    assert (report.history_events, report.live_events, report.duplicates) == (400 + _USERS, 61, 1)
    assert report.dead_letters == 0
    assert report.daemon_exit_code == 0
    assert report.live is not None
    assert report.live.users == _USERS
    assert report.all_lists >= report.live.lists + _USERS
    assert 0 < report.live.median_ms <= report.live.p99_ms < 10_000
    assert report.users_in_batch >= 1
    assert report.new_videos == 1
    assert report.new_videos_listed <= 1
    # every video is watched by each user in turn, so that most of the live ones are new to theirs
    assert report.next_videos.moments > _USERS
    assert report.next_videos.listed <= report.next_videos.moments
    assert re.search(r"user u\d+ watched v\d+ -> v\d+ \(-\d", console.export_text())
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        assert not [name for name in await admin.list_topics() if name.startswith("mtgr-demo-")]
    finally:
        await admin.close()
