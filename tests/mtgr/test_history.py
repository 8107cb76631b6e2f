"""Promises of mtgr.history: records hold what the events said, and what does not fit together is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import events, identifiers

from mtgr.history import (
    FAVORITE,
    LIKE,
    RECORD_BYTES,
    SHARE,
    WATCH,
    History,
    event_digest,
    pack_event,
)
from schemas.events import Event, Favorite, Like, Share, Watch

CODES = {Watch: WATCH, Like: LIKE, Favorite: FAVORITE, Share: SHARE}


def _packed(log: list[Event]) -> tuple[bytes, bytes]:
    videos = [event.video_id.encode() for event in log]
    records = [
        pack_event(event, event_digest(event.event_id), video)
        for event, video in zip(log, videos, strict=True)
    ]
    return b"".join(records), b"".join(videos)


@given(st.lists(events(), max_size=20))
def test_every_fact_of_an_event_is_read_back(log: list[Event]) -> None:
    """Type, time, video and watch facts come back as the events gave them, floats to single precision."""
    history = History.from_bytes(*_packed(log))
    assert len(history) == len(log)
    assert history.video_ids == [event.video_id for event in log]
    for record, event in zip(history.records, log, strict=True):
        assert record["event_digest"].tobytes() == event_digest(event.event_id)
        assert record["timestamp_ms"] == event.timestamp_ms
        assert record["event_type"] == CODES[type(event)]
        if isinstance(event, Watch):
            assert record["watch_seconds"] == np.float32(event.watch_seconds)
            assert record["watch_ratio"] == np.float32(event.watch_ratio)
            assert record["video_seconds"] == np.float32(event.video_seconds or 0.0)
        else:
            assert record["watch_seconds"] == record["watch_ratio"] == record["video_seconds"] == 0


@given(st.lists(events(), max_size=20))
def test_events_packed_offline_equal_those_of_the_daemon(log: list[Event]) -> None:
    """Training packs events by from_events exactly as the daemon packs them one by one."""
    offline, online = History.from_events(log), History.from_bytes(*_packed(log))
    assert offline.records.tobytes() == online.records.tobytes()
    assert offline.video_ids == online.video_ids


@given(st.lists(events(), min_size=1, max_size=5), st.data())
def test_bytes_that_do_not_belong_together_are_refused(log: list[Event], data: st.DataObject) -> None:
    """Records that are cut short, or video ids of another length than recorded, raise ValueError."""
    records, videos = _packed(log)
    cut = data.draw(st.integers(1, len(records) - 1).filter(lambda n: n % RECORD_BYTES))
    with pytest.raises(ValueError, match=f"multiple of {RECORD_BYTES}"):
        History.from_bytes(records[:cut], videos)
    with pytest.raises(ValueError, match="where the records want"):
        History.from_bytes(records, videos + data.draw(st.binary(min_size=1, max_size=3)))
    with pytest.raises(ValueError, match="where the records want"):
        History.from_bytes(records, videos[: data.draw(st.integers(0, len(videos) - 1))])


def test_an_empty_history_is_valid() -> None:
    """A user without events has a history of length zero, not an error."""
    history = History.from_bytes(b"", b"")
    assert len(history) == 0
    assert history.records.shape == (0,)


def test_a_share_channel_is_told_from_none() -> None:
    """A channel always has the same detail, which is never the 0 of an unknown channel."""
    fields: dict[str, Any] = {"event_id": "e", "user_id": "u", "video_id": "v", "timestamp_ms": 0}
    channels = [f"channel {number}" for number in range(2_000)]
    log: list[Event] = [Share(**fields, channel=channel) for channel in channels]
    details = History.from_events(log).records["detail"]
    assert details.all()
    assert details.tolist() == History.from_events(log).records["detail"].tolist()
    assert len(set(details.tolist())) == 255
    assert History.from_events([Share(**fields)]).records["detail"].tolist() == [0]


@given(st.lists(identifiers, unique=True, max_size=50))
def test_digests_tell_event_ids_apart(ids: list[str]) -> None:
    """Different event ids have different digests of eight bytes, however alike they look."""
    digests = {event_digest(event_id) for event_id in ids}
    assert len(digests) == len(ids)
    assert all(len(digest) == 8 for digest in digests)
