"""Events of a batch to feature rows in one compiled pass: what `mtgr.features.RowEncoder.encode_events` computes.

The reference takes some passes of numpy over each column, and a look-up in a dictionary for each video; this takes each
event once, from packed bytes to its row. What is rare is left to the reference's own code: videos outside the catalog.
"""

# numba gives functions their types.
# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mtgr.catalog import Catalog
from mtgr.config import TIME_LANES, VIDEO_LANES, ModelConfig
from mtgr.features import EVENT, GROUP_LANE, TIME_LANE, VIDEO_LANE, write_video
from mtgr.history import RECORD_DTYPE, SHARE, WATCH
from mtgr.kernels import simd
from mtgr.kernels.simd import put_one
from mtgr.serving import video_table
from mtgr.serving.compiled import compile_now, inlined
from mtgr.serving.video_table import VideoTable, find

_DISCRETE: Final = ("event_type", "hour", "weekday", "share_channel")
_CONTINUOUS: Final = ("watch_seconds", "watch_ratio", "video_seconds", "gap_seconds")
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_CORRUPT: Final = -1
_LANE_BYTES: Final = 4  # bytes of a lane

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NewEvents:
    """Consecutive events of several users, joined; of each user the bytes of records and of video ids go on."""

    records: bytes
    videos: bytes
    counts: Numbers
    """(users,) events of each, at least one."""
    video_bytes: Numbers
    """(users,) bytes of its video ids."""
    before_ms: Numbers
    """(users,) timestamps of the events before those, `mtgr.features.NO_TIME` where there is none."""
    rows: Numbers
    """(users,) where the row of its first event goes; those of the others follow."""


class EventRows:
    """Encodes events for one model config and its catalog, to which videos may be added meanwhile."""

    def __init__(self, config: ModelConfig, catalog: Catalog) -> None:
        self._config: Final = config
        self._catalog: Final = catalog
        self._table: Final = VideoTable(config.n_slots)
        self._discrete: Final = np.array(
            [(_DISCRETE.index(feature.name), feature.lanes) for feature in config.discrete], np.int64
        ).reshape(-1, 2)
        self._continuous: Final = np.array(
            [_CONTINUOUS.index(number.name) for number in config.continuous], np.int64
        )
        self._follow()

    def encode(
        self, events: NewEvents, rows: npt.NDArray[np.float32], items: npt.NDArray[np.int32]
    ) -> list[tuple[int, str]]:
        """Write the rows of events, (tokens, lanes), and their items (tokens,): places of the catalog, or NO_ITEM.

        Returns the users, by their number, and the ids of videos outside the catalog. ValueError if a record is none
        that an event makes or has other video ids than its user; what was written by then means nothing.
        """
        self._follow()
        unknown = np.empty((len(events.records) // RECORD_DTYPE.itemsize, 4), np.int64)
        found = _encode()(
            np.frombuffer(events.records, RECORD_DTYPE),
            np.frombuffer(events.videos, np.uint8),
            events.counts,
            events.video_bytes,
            events.before_ms,
            events.rows,
            self._discrete,
            self._continuous,
            self._config.time_bias,
            self._table.slots,
            self._table.ids,
            self._table.ends,
            rows,
            items,
            unknown,
        )
        if found == _CORRUPT:
            raise ValueError("the records of a request are none that events make, or are of other videos")
        if not found:
            return []
        return self._place(unknown[:found], events.videos, rows)

    def _follow(self) -> None:
        """Learn of the videos that have joined the catalog."""
        videos = self._catalog.video_ids
        if len(videos) > self._table.size:
            self._table.extend(videos[self._table.size :])

    def _place(self, unknown: Numbers, videos: bytes, rows: npt.NDArray[np.float32]) -> list[tuple[int, str]]:
        """Give the rows of unknown videos their buckets; unknown: (n, 4) user, row, and where in `videos` the id is."""
        ids = [videos[begin:end].decode() for _, _, begin, end in unknown.tolist()]
        buckets = np.array([self._catalog.bucket(video_id) for video_id in ids], np.int64)
        places = unknown[:, 1]
        changed = rows[places]
        write_video(changed, buckets)
        rows[places] = changed
        return list(zip(unknown[:, 0].tolist(), ids, strict=True))


def warm_up() -> None:
    """Compile what there is to compile, or load it from the disk: no list should wait for that."""
    _encode()
    VideoTable(1).extend([])


@functools.cache
def _encode() -> Any:
    def use(encode: Any) -> None:
        nothing, one = np.zeros(0, np.int64), np.frombuffer(b"\0", np.uint8)
        table = VideoTable(1)
        encode(
            np.frombuffer(bytes(RECORD_DTYPE.itemsize), RECORD_DTYPE),
            one,
            *[nothing] * 4,
            np.zeros((0, 2), np.int64),
            nothing,
            False,
            table.slots,
            table.ids,
            table.ends,
            np.zeros((0, 8), np.float32),
            np.zeros(0, np.int32),
            np.zeros((0, 4), np.int64),
        )

    return compile_now(_encode_entry, [simd, video_table], use)


def _encode_entry(sources: str) -> Callable[..., Any]:
    def encode(
        records,
        videos,
        counts,
        video_bytes,
        before_ms,
        first_rows,
        discrete,
        continuous,
        time_bias,
        slots,
        ids,
        ends,
        rows,
        items,
        unknown,
    ):
        sources  # noqa: B018
        event, begin, strangers = 0, 0, 0
        row_bytes = _LANE_BYTES * rows.shape[1]
        for user in range(len(counts)):
            last_byte = begin + video_bytes[user]
            before = before_ms[user]
            for at in range(first_rows[user], first_rows[user] + counts[user]):
                record = records[event]
                length = np.int64(record.video_id_bytes)
                if not _is_sound(record) or begin + length > last_byte:
                    return _CORRUPT
                index = find(slots, ids, ends, videos, begin, length)
                items[at] = index
                if index < 0:
                    unknown[strangers, 0], unknown[strangers, 1] = user, at
                    unknown[strangers, 2], unknown[strangers, 3] = begin, begin + length
                    strangers += 1
                    index = 0
                row = rows.ctypes.data + at * row_bytes
                put_one(np.float32(EVENT), row + _LANE_BYTES * GROUP_LANE)
                lane = _put_bytes(row + _LANE_BYTES * VIDEO_LANE, VIDEO_LANES, index)
                if time_bias:
                    lane = _put_bytes(row + _LANE_BYTES * TIME_LANE, TIME_LANES, record.timestamp_ms // 1000)
                for place in range(len(discrete)):
                    lane = _put_bytes(lane, discrete[place, 1], _discrete(record, discrete[place, 0]))
                for place in range(len(continuous)):
                    put_one(_continuous(record, continuous[place], before), lane)
                    lane += _LANE_BYTES
                for rest in range(lane, row + row_bytes, _LANE_BYTES):
                    put_one(np.float32(0.0), rest)
                before = record.timestamp_ms
                begin += length
                event += 1
            if begin != last_byte:
                return _CORRUPT
        return strangers

    return encode


@inlined
def _is_sound(record):
    """As `mtgr.features.check_records` has it."""
    return (
        WATCH <= record.event_type <= SHARE
        and record.timestamp_ms >= 0
        and 0 <= record.watch_seconds < math.inf
        and 0 <= record.watch_ratio < math.inf
        and 0 <= record.video_seconds < math.inf
    )


@inlined
def _discrete(record, feature):
    if feature == 0:
        return np.int64(record.event_type)
    if feature == 1:
        return record.timestamp_ms // _HOUR_MS % 24
    if feature == 2:
        return (record.timestamp_ms // _DAY_MS + 3) % 7  # 1970 began on a Thursday, and 0 is Monday
    return np.int64(record.detail)


@inlined
def _continuous(record, feature, before_ms):
    if feature == 0:
        return record.watch_seconds
    if feature == 1:
        return record.watch_ratio
    if feature == 2:
        return record.video_seconds
    if before_ms < 0:
        return np.float32(0.0)
    return np.float32(max(record.timestamp_ms - before_ms, 0) / 1000.0)


@inlined
def _put_bytes(lane, count, number):
    """Write a number's bytes, lowest first, from the lane of an address on; returns the address of the next one."""
    for byte in range(count):
        put_one(np.float32(number >> (8 * byte) & 255), lane + _LANE_BYTES * byte)
    return lane + _LANE_BYTES * count
