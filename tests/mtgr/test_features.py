"""Promises of mtgr.features: what an event says is in its row, and a row never changes afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import events

from mtgr.attributes import AttributeEncoder
from mtgr.catalog import Catalog
from mtgr.errors import InputError
from mtgr.features import (
    CANDIDATE,
    EVENT,
    GROUP_LANE,
    PROFILE,
    RowEncoder,
    candidate_rows,
    check_records,
    write_video,
)
from mtgr.history import LIKE, SHARE, WATCH, History
from mtgr.model.embeddings import unpack_rows
from mtgr.presets import PRESETS
from schemas.events import Event, Like, Share, Watch

# more than 2**16 indices, so that all three lanes of a video are used
KNOWN = [f"v{number}" for number in range(70_000)]
CATALOG = Catalog(KNOWN, 16)
CONFIG = PRESETS["tiny"].replace(n_items=len(KNOWN), unknown_buckets=16)
ENCODER = RowEncoder(CONFIG, CATALOG)
DISCRETE = [feature.name for feature in CONFIG.discrete]
CONTINUOUS = [feature.name for feature in CONFIG.continuous]
NO_ROWS = np.empty((0, CONFIG.row_width), np.float32)
logs = st.lists(events(), max_size=12)


def _watch(**fields: Any) -> Watch:
    defaults: dict[str, Any] = {
        "event_id": "e",
        "user_id": "u",
        "video_id": "v69999",
        "timestamp_ms": 0,
        "watch_seconds": 1.0,
        "watch_ratio": 0.5,
    }
    return Watch(**(defaults | fields))


def _features(log: list[Event]) -> list[dict[str, float]]:
    """The event rows of a log, read back by name."""
    rows = torch.from_numpy(ENCODER.encode(History.from_events(log)).rows)[1:]
    unpacked = unpack_rows(rows, CONFIG)
    columns = {name: values.tolist() for name, values in zip(DISCRETE, unpacked.discrete, strict=True)}
    columns |= {name: unpacked.continuous[:, place].tolist() for place, name in enumerate(CONTINUOUS)}
    columns |= {"video": unpacked.video.tolist(), "group": unpacked.group.tolist()}
    return [{name: values[place] for name, values in columns.items()} for place in range(len(log))]


@given(logs)
def test_a_history_is_the_profile_and_one_row_an_event(log: list[Event]) -> None:
    """n events give n + 1 finite rows; ids are the profile's and then the videos' item indices."""
    encoded = ENCODER.encode(History.from_events(log))
    assert encoded.rows.shape == (len(log) + 1, CONFIG.row_width)
    assert encoded.rows.dtype == np.float32
    assert np.isfinite(encoded.rows).all()
    assert encoded.rows[:, GROUP_LANE].tolist() == [PROFILE] + [EVENT] * len(log)
    assert encoded.token_ids.tolist() == [
        CONFIG.profile_id,
        *(CATALOG.index(event.video_id) for event in log),
    ]


@given(logs, logs)
def test_appending_events_changes_no_earlier_row(before: list[Event], after: list[Event]) -> None:
    """Rows of a history are the first rows of every longer history: what is cached stays exact."""
    short = ENCODER.encode(History.from_events(before))
    long = ENCODER.encode(History.from_events(before + after))
    assert np.array_equal(long.rows[: len(short.rows)], short.rows)
    assert np.array_equal(long.token_ids[: len(short.rows)], short.token_ids)


@given(st.lists(logs, max_size=5))
def test_a_batch_is_its_users_one_after_the_other(users: list[list[Event]]) -> None:
    """No user's rows depend on who else is in the batch, users without events included."""
    histories = [History.from_events(log) for log in users]
    batch = ENCODER.encode_batch(histories)
    singles = [ENCODER.encode(history) for history in histories]
    assert batch.lengths.tolist() == [len(log) + 1 for log in users]
    assert np.array_equal(batch.rows, np.concatenate([NO_ROWS, *(single.rows for single in singles)]))
    assert batch.token_ids.tolist() == [token for single in singles for token in single.token_ids.tolist()]


@given(logs)
def test_the_model_reads_back_what_was_written(log: list[Event]) -> None:
    """Unpacking the lanes gives every index and number, also after a trip through bfloat16 for the indices."""
    rows = torch.from_numpy(ENCODER.encode(History.from_events(log)).rows)
    exact, rounded = unpack_rows(rows, CONFIG), unpack_rows(rows.bfloat16(), CONFIG)
    assert exact.video[1:].tolist() == [CATALOG.index(event.video_id) for event in log]
    for ours, theirs in [
        (exact.video, rounded.video),
        (exact.group, rounded.group),
        *zip(exact.discrete, rounded.discrete, strict=True),
    ]:
        assert torch.equal(ours, theirs)
    watched = [event.watch_seconds if isinstance(event, Watch) else 0.0 for event in log]
    assert exact.continuous[1:, CONTINUOUS.index("watch_seconds")].tolist() == np.float32(watched).tolist()


def test_a_watch_tells_what_when_how_long_and_how_long_after() -> None:
    """Each fact of an event stands in the lane of its name; the first event has no gap, a late one none."""
    saturday_23_30 = 1_777_764_600_000 + 90_000
    log: list[Event] = [
        _watch(timestamp_ms=saturday_23_30, watch_seconds=12.5, watch_ratio=1.25, video_seconds=10.0),
        Like(event_id="l", user_id="u", video_id="v1", timestamp_ms=saturday_23_30 + 2_500),
        Share(event_id="s", user_id="u", video_id="v0", timestamp_ms=saturday_23_30 - 1, channel="chat"),
    ]
    watch, like, share = _features(log)
    assert watch == {
        "group": EVENT, "video": 69_999, "event_type": WATCH, "hour": 23, "weekday": 5, "share_channel": 0,
        "watch_seconds": 12.5, "watch_ratio": 1.25, "video_seconds": 10.0, "gap_seconds": 0.0,
    }  # fmt: skip
    assert (like["event_type"], like["video"], like["gap_seconds"], like["watch_seconds"]) == (
        LIKE,
        1,
        2.5,
        0,
    )
    assert (share["event_type"], share["gap_seconds"]) == (SHARE, 0.0)
    assert share["share_channel"] > 0


def test_an_unknown_video_shows_its_bucket() -> None:
    """A video outside the catalog is a bucket's row, the same one for the same id."""
    first, second = _features([_watch(video_id="new"), _watch(video_id="new")])
    assert first["video"] == second["video"] == CATALOG.index("new") >= len(KNOWN)


def test_other_videos_can_be_put_into_rows() -> None:
    """Writing a video changes the video's lanes alone."""
    rows = ENCODER.encode(History.from_events([_watch(), _watch()])).rows[1:]
    other = rows.copy()
    write_video(other, np.array([66_000, 3]))
    assert unpack_rows(torch.from_numpy(other), CONFIG).video.tolist() == [66_000, 3]
    write_video(other, np.array([69_999, 69_999]))
    assert np.array_equal(other, rows)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("watch_seconds", np.nan, "watch_seconds of event 1 is nan"),
        ("watch_ratio", np.inf, "watch_ratio of event 1 is inf"),
        ("video_seconds", -1.0, "video_seconds of event 1 is -1.0"),
        ("event_type", 9, "event type of event 1 is 9, where 1 to 4 are known"),
        ("timestamp_ms", -5, "timestamp_ms of event 1 is -5"),
    ],
)
def test_records_that_no_event_makes_are_refused(field: str, value: float, message: str) -> None:
    """A damaged record is named by its place and its field before it can reach a model."""
    history = History.from_events([_watch(), _watch(), _watch()])
    records = history.records.copy()
    records[field][1] = value
    check_records(history)
    with pytest.raises(ValueError, match=message):
        check_records(History(records, history.video_ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discrete": [{"name": "weekdey", "size": 7}]}, "'weekdey'; did you mean weekday?"),
        ({"continuous": [{"name": "mood"}]}, "'mood'; known are watch_seconds, "),
        ({"discrete": [{"name": "hour", "size": 12}]}, "'hour' has size 12, but 24 values"),
        ({"n_items": 5}, "70000 videos, 16 buckets and 0 spare places, where the model config has n_items 5"),
    ],
)
def test_a_config_that_no_event_can_fill_is_refused(changes: dict[str, Any], message: str) -> None:
    """Features that events lack, too small a table and another catalog are told when the encoder is made."""
    with pytest.raises(InputError) as caught:
        RowEncoder(CONFIG.replace(**changes), CATALOG)
    assert message in str(caught.value)


def test_times_and_profiles_have_lanes_where_the_config_asks_for_them() -> None:
    """An event's seconds and a user's attributes are in the rows, exactly; without profiles their lanes are 0."""
    config = CONFIG.replace(
        time_bias=True,
        user_categories=[{"name": "city", "size": 70_000}, {"name": "tags", "size": 9, "values": 2}],
        user_numbers=[{"name": "age", "mean": 30, "scale": 10}],
    )
    encoder = RowEncoder(config, CATALOG)
    profile = {"city": "Köln", "tags": ["a", "b"], "age": 45.0}
    history = History.from_events([_watch(timestamp_ms=1_700_000_000_999)])
    encoded = encoder.encode_batch([history, history], [profile, {}])
    known, event, unknown, _ = torch.from_numpy(encoded.rows)
    assert unpack_rows(event, config).time.tolist() == 1_700_000_000
    assert unpack_rows(known, config).time.tolist() == 0
    lanes = known[config.feature_lane :].reshape(-1).tolist()
    ids, numbers = AttributeEncoder(config.user_categories, config.user_numbers).encode(profile)
    assert [sum(int(lanes[3 * i + b]) << (8 * b) for b in range(3)) for i in range(3)] == ids.tolist()
    assert lanes[9] == numbers[0] == 1.5
    assert not unknown[1:].any()
    assert np.array_equal(encoder.encode(history).rows, encoded.rows[2:])


def test_a_candidate_row_is_its_video_and_nothing_else() -> None:
    """All lanes but the group's and the video's are 0."""
    rows = candidate_rows(np.array([0, 300, 69_999]), CONFIG)
    assert rows[:, GROUP_LANE].tolist() == [CANDIDATE] * 3
    assert unpack_rows(torch.from_numpy(rows), CONFIG).video.tolist() == [0, 300, 69_999]
    assert not rows[:, 4:].any()
