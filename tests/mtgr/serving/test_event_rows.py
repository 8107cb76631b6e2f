"""What compiled functions make of events is what the reference makes of them, byte for byte."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from histories import interactions, scattered
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from serving import ITEMS, SPARE

from mtgr.catalog import Catalog
from mtgr.checkpoint import Checkpoint
from mtgr.config import ModelConfig
from mtgr.features import NO_TIME, RowEncoder
from mtgr.history import RECORD_DTYPE, WATCH, History
from mtgr.serving.event_rows import EventRows, NewEvents
from mtgr.serving.session_steps import NO_ITEM

IDS = st.text(min_size=1, max_size=40)
ODD_IDS = [
    "a",
    "ab",
    "abcdefg",
    "abcdefgh",
    "abcdefghi",
    "ein Vögelchen",
    "동영상",
    "x" * 300,
    "v\0",
    "v\0\0",
]


def encoded(
    rows: EventRows, histories: list[tuple[History, int]], config: ModelConfig
) -> tuple[Any, Any, Any]:
    """Rows, items and unknown videos of what comes after so many events of each history."""
    new = [(history.records[first:], history.video_ids[first:]) for history, first in histories]
    counts = np.array([len(records) for records, _ in new])
    videos = ["".join(ids).encode() for _, ids in new]
    found = np.full((counts.sum(), config.row_width), np.nan, np.float32)
    items = np.full(counts.sum(), 99, np.int32)
    events = NewEvents(
        records=b"".join(records.tobytes() for records, _ in new),
        videos=b"".join(videos),
        counts=counts,
        video_bytes=np.array([len(one) for one in videos]),
        before_ms=np.array([times(history)[first - 1] if first else NO_TIME for history, first in histories]),
        rows=np.cumsum(counts) - counts,
    )
    return found, items, rows.encode(events, found, items)


def times(history: History) -> Any:
    return history.records["timestamp_ms"]


def wanted(
    encoder: RowEncoder, histories: list[tuple[History, int]], config: ModelConfig
) -> tuple[Any, Any, Any]:
    """The same, of whole histories by the reference."""
    made = [(encoder.encode(history), history, first) for history, first in histories]
    token_ids = np.concatenate([one.token_ids[1 + first :] for one, _, first in made])
    known = np.where(token_ids < config.n_slots, token_ids, NO_ITEM)
    users = np.repeat(range(len(made)), [len(history) - first for _, history, first in made])
    ids = [video_id for _, history, first in made for video_id in history.video_ids[first:]]
    unknown = [(int(users[place]), ids[place]) for place in np.flatnonzero(known == NO_ITEM)]
    return np.concatenate([one.rows[1 + first :] for one, _, first in made]), known, unknown


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["plain", "everything", "bare"]), st.integers(0, 2**32), st.lists(IDS, max_size=6))
def test_rows_are_those_of_the_reference(
    checkpoints: dict[str, Checkpoint], name: str, seed: int, names: list[str]
) -> None:
    """Of any videos, known or not, at any times, from the first event on or from a later one."""
    chance = random.Random(seed)
    config = checkpoints[name].config
    catalog = Catalog((f"v{number}" for number in range(ITEMS)), config.unknown_buckets, config.spare_items)
    names = [*ODD_IDS, *names]
    histories = []
    for user in range(chance.randint(1, 5)):
        events = scattered(interactions(chance.randrange(10**6), chance.randint(1, 40), f"u{user}"), chance)
        events = [
            replace(event, video_id=chance.choice(names)) if chance.random() < 0.4 else event
            for event in events
        ]
        histories.append((History.from_events(events), chance.randrange(len(events))))
    rows, encoder = EventRows(config, catalog), RowEncoder(config, catalog)
    for _ in range(2):
        for got, want in zip(
            encoded(rows, histories, config), wanted(encoder, histories, config), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        for video_id in set(chance.choices(names, k=SPARE)) - set(catalog.video_ids):  # some join the catalog
            catalog.add(video_id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("watch_seconds", np.nan),
        ("watch_ratio", np.inf),
        ("video_seconds", -1.0),
        ("event_type", WATCH - 1),
        ("event_type", 77),
        ("timestamp_ms", -1),
        ("video_id_bytes", 0),
        ("video_id_bytes", 2**16 - 1),
    ],
)
def test_events_that_are_none_are_refused(
    checkpoints: dict[str, Checkpoint], field: str, value: float
) -> None:
    """Wherever they stand, and nothing is read that is not there."""
    checkpoint = checkpoints["everything"]
    rows = EventRows(checkpoint.config, checkpoint.catalog)
    for place in (0, 7, 19):
        history = History.from_events(interactions(1, 20))
        records = history.records.copy()
        records[field][place] = value
        broken = History(records, history.video_ids)
        with pytest.raises(ValueError, match="none that events make"):
            encoded(rows, [(broken, 0)], checkpoint.config)


def test_ids_that_are_no_text_are_refused(checkpoints: dict[str, Checkpoint]) -> None:
    """As by whoever reads a history by itself."""
    config, catalog = checkpoints["plain"].config, checkpoints["plain"].catalog
    record = np.zeros(1, RECORD_DTYPE)
    record["event_type"], record["video_id_bytes"] = WATCH, 2
    one = np.ones(1, np.int64)
    events = NewEvents(record.tobytes(), b"\xff\xfe", one, 2 * one, -one, 0 * one)
    with pytest.raises(UnicodeDecodeError):
        EventRows(config, catalog).encode(
            events, np.zeros((1, config.row_width), np.float32), np.zeros(1, np.int32)
        )
