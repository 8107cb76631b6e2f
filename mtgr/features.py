"""The one place where an event becomes a feature row.

A sequence is the user-profile row and then one row for each event, oldest first. A row is float32 lanes:

    lane 0      token group: PROFILE, EVENT or CANDIDATE
    lanes 1-3   item index of the video, as bytes, lowest first
    lanes 4-7   where attention asks for times: seconds since 1970, as bytes, lowest first
    then        of an event, the config's discrete features, each as its byte lanes, lowest first
    then        of an event, the config's continuous features, raw and finite
    instead     of a profile, the user's categories, three byte lanes each, and the user's numbers

Bytes and groups are whole numbers up to 255, which bfloat16 holds exactly; `mtgr.model.embeddings` reads
the lanes back. A row depends on its event and the one before it alone, so appending events changes no row.
A candidate is a video of which nothing is known but itself: its other lanes are 0, its time included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mtgr.attributes import AttributeEncoder
from mtgr.catalog import Catalog
from mtgr.config import CATEGORY_LANES, TIME_LANES, VIDEO_LANES, ModelConfig
from mtgr.errors import InputError
from mtgr.history import SHARE, WATCH, History
from mtgr.suggestions import did_you_mean

PROFILE: Final = 0
EVENT: Final = 1
CANDIDATE: Final = 2

GROUP_LANE: Final = 0
VIDEO_LANE: Final = 1
TIME_LANE: Final = VIDEO_LANE + VIDEO_LANES

NO_TIME: Final = -1
"""What stands for the time of the event before, of a first one."""

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS

Records = npt.NDArray[np.void]
Column = npt.NDArray[Any]

# Discrete features: number of values, and the values of all records (UTC where time is concerned; 1970-01-01
# was a Thursday, and weekday 0 is Monday). The profile row has value 0 throughout: no event type has it.
_DISCRETE: Final[dict[str, tuple[int, Callable[[Records], Column]]]] = {
    "event_type": (SHARE + 1, lambda records: records["event_type"]),
    "hour": (24, lambda records: records["timestamp_ms"] // _HOUR_MS % 24),
    "weekday": (7, lambda records: (records["timestamp_ms"] // _DAY_MS + 3) % 7),
    "share_channel": (256, lambda records: records["detail"]),
}


def _gap_seconds(records: Records, starts: Column, before_ms: Column) -> Column:
    """Seconds since the event before in the same history, 0 for a first or a late event."""
    times = records["timestamp_ms"]
    gaps = np.zeros(len(times), np.float32)
    gaps[1:] = np.maximum(times[1:] - times[:-1], 0) / 1000.0
    gaps[starts] = np.where(before_ms >= 0, np.maximum(times[starts] - before_ms, 0) / 1000.0, 0.0)
    return gaps


# Continuous features: the values of all records; `starts` are the places where a user's records begin, `before_ms` the
# times of the events before those, NO_TIME where there is none.
_CONTINUOUS: Final[dict[str, Callable[[Records, Column, Column], Column]]] = {
    "watch_seconds": lambda records, starts, before_ms: records["watch_seconds"],
    "watch_ratio": lambda records, starts, before_ms: records["watch_ratio"],
    "video_seconds": lambda records, starts, before_ms: records["video_seconds"],
    "gap_seconds": _gap_seconds,
}


@dataclass(frozen=True, slots=True)
class EncodedHistories:
    """Rows of several users, joined.

    rows: (total, lanes) float32; token_ids: (total,) int64, the item index of each event row and the config's
    profile_id for a profile row; lengths: (users,) int64, rows of each user, the profile included.
    """

    rows: npt.NDArray[np.float32]
    token_ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


class RowEncoder:
    """Turns histories into feature rows, for one model config and its catalog."""

    def __init__(self, config: ModelConfig, catalog: Catalog) -> None:
        """InputError if the config asks for a feature that no event has, or disagrees with the catalog."""
        for discrete in config.discrete:
            if discrete.name not in _DISCRETE:
                hint = did_you_mean(discrete.name, _DISCRETE)
                raise InputError(f"model config: unknown discrete feature {discrete.name!r}{hint}")
            values = _DISCRETE[discrete.name][0]
            if discrete.size < values:
                raise InputError(
                    f"model config: feature {discrete.name!r} has size {discrete.size}, but {values} values"
                )
        for number in config.continuous:
            if number.name not in _CONTINUOUS:
                hint = did_you_mean(number.name, _CONTINUOUS)
                raise InputError(f"model config: unknown continuous feature {number.name!r}{hint}")
        found = (catalog.trained, catalog.unknown_buckets, catalog.spare_items)
        if found != (config.n_items, config.unknown_buckets, config.spare_items):
            raise InputError(
                f"catalog: {found[0]} videos, {found[1]} buckets and {found[2]} spare places, where the model config "
                f"has n_items {config.n_items}, unknown_buckets {config.unknown_buckets} and spare_items "
                f"{config.spare_items}"
            )
        self._config: Final = config
        self._catalog: Final = catalog
        self._users: Final = AttributeEncoder(config.user_categories, config.user_numbers)
        self._has_profile_lanes: Final = bool(self._users.columns or self._users.number_columns)

    def encode(self, history: History, profile: Mapping[str, Any] | None = None) -> EncodedHistories:
        """The rows of one user: n events give n + 1 rows; `profile` holds the user's attributes."""
        return self.encode_batch([history], [profile or {}])

    def encode_batch(
        self, histories: Sequence[History], profiles: Sequence[Mapping[str, Any]] | None = None
    ) -> EncodedHistories:
        """The rows of several users in one go, joined in the order given; no profiles: nothing is known of them."""
        counts = np.array([len(history) for history in histories], np.int64)
        lengths = counts + 1
        total = int(lengths.sum())
        firsts = np.cumsum(lengths) - lengths
        rows = np.zeros((total, self._config.row_width), np.float32)
        token_ids = np.full(total, self._config.profile_id, np.int64)
        if profiles is not None:
            rows[firsts] = self.encode_profiles(profiles)
        if not counts.any():
            return EncodedHistories(rows, token_ids, lengths)

        records = np.concatenate([history.records for history in histories])
        starts = (np.cumsum(counts) - counts)[counts > 0]
        is_event = np.ones(total, np.bool_)
        is_event[firsts] = False
        rows[is_event], token_ids[is_event] = self.encode_events(
            records,
            [video for history in histories for video in history.video_ids],
            starts,
            np.full(len(starts), NO_TIME),
        )
        return EncodedHistories(rows, token_ids, lengths)

    def encode_events(
        self,
        records: Records,
        video_ids: Sequence[str],
        starts: npt.NDArray[np.int64],
        before_ms: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The rows (n, lanes) and item indices (n,) of consecutive events of several users, joined.

        starts: (users,) where the events of each begin; before_ms: (users,) timestamps of the events before those,
        NO_TIME for a user of whom there is none.
        """
        config = self._config
        indices = self._catalog.indices(video_ids)
        rows = np.zeros((len(records), config.row_width), np.float32)
        rows[:, GROUP_LANE] = EVENT
        write_video(rows, indices)
        if config.time_bias:
            _write_bytes(rows, TIME_LANE, TIME_LANES, records["timestamp_ms"] // 1000)
        lane = config.feature_lane
        for discrete in config.discrete:
            _write_bytes(rows, lane, discrete.lanes, _DISCRETE[discrete.name][1](records).astype(np.int64))
            lane += discrete.lanes
        for number in config.continuous:
            rows[:, lane] = _CONTINUOUS[number.name](records, starts, before_ms)
            lane += 1
        return rows, indices

    def encode_profiles(self, profiles: Sequence[Mapping[str, Any]]) -> npt.NDArray[np.float32]:
        """The rows (n, lanes) of users of whom so much is known."""
        rows = np.zeros((len(profiles), self._config.row_width), np.float32)
        if not self._has_profile_lanes:
            return rows
        ids, numbers = self._users.encode_all(profiles)
        lane = self._config.feature_lane
        for column in range(ids.shape[1]):
            _write_bytes(rows, lane, CATEGORY_LANES, ids[:, column])
            lane += CATEGORY_LANES
        rows[:, lane : lane + numbers.shape[1]] = numbers
        return rows


def write_video(rows: npt.NDArray[np.float32], items: npt.NDArray[np.int64]) -> None:
    """Put other videos into event rows, in place; rows: (n, lanes), items: (n,) item indices."""
    _write_bytes(rows, VIDEO_LANE, VIDEO_LANES, items)


def candidate_rows(items: npt.NDArray[np.int64], config: ModelConfig) -> npt.NDArray[np.float32]:
    """(n, lanes) rows of videos of which nothing is known but themselves; items: (n,) item indices."""
    rows = np.zeros((len(items), config.row_width), np.float32)
    rows[:, GROUP_LANE] = CANDIDATE
    write_video(rows, items)
    return rows


def check_records(history: History) -> None:
    """Refuse records that no event makes; ValueError names the field and the place."""
    records = history.records
    for field in ("watch_seconds", "watch_ratio", "video_seconds"):
        values = records[field]
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(wrong):
            raise ValueError(
                f"{field} of event {wrong[0]} is {values[wrong[0]]}, where a number >= 0 is wanted"
            )
    types = records["event_type"]
    wrong = np.flatnonzero((types < WATCH) | (types > SHARE))
    if len(wrong):
        raise ValueError(
            f"event type of event {wrong[0]} is {types[wrong[0]]}, where {WATCH} to {SHARE} are known"
        )
    times = records["timestamp_ms"]
    wrong = np.flatnonzero(times < 0)
    if len(wrong):
        raise ValueError(f"timestamp_ms of event {wrong[0]} is {times[wrong[0]]}, where >= 0 is wanted")


def _write_bytes(lanes: npt.NDArray[np.float32], first: int, count: int, values: Column) -> None:
    for byte in range(count):
        lanes[:, first + byte] = values >> (8 * byte) & 255
