"""What is learnt from a log: windows of the users' histories, and the video to predict after each event.

The daemon lets a history grow to the config's capacity and then cuts it, so a long history is learnt in
windows of up to that length: they overlap, and a place that two of them share is learnt in the earlier one,
where more came before it.

The target after an event is the next video that will be watched and is not in the window so far: lists leave
seen videos out, and a like or a share of the video just watched is no news.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.features import RowEncoder
from mtgr.history import WATCH, History
from mtgr.training.log import EventLog

NO_TARGET: Final = -1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """For the test of one user: the history as the daemon would hold it, and the item watched after it."""

    history: History
    target: int


@dataclass(frozen=True, slots=True)
class Windows:
    """Encoded windows, joined; window w is the rows starts[w] to starts[w] + lengths[w].

    rows: (total, lanes) float32; token_ids: (total,) int64 item indices; targets: (total,) int64, the item to
    predict from each row or NO_TARGET; starts, lengths: (windows,) int64.
    """

    rows: npt.NDArray[np.float32]
    token_ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)


def next_new_videos(history: History, items: npt.NDArray[np.int64], n_items: int) -> npt.NDArray[np.int64]:
    """The item to predict before each event and after the last: (n + 1,) int64, NO_TARGET where none follows."""
    watched = np.flatnonzero((history.records["event_type"] == WATCH) & (items < n_items))
    _, first_seen = np.unique(items, return_index=True)
    new = np.zeros(len(items) + 1, np.bool_)
    new[np.intersect1d(watched, first_seen)] = True
    # at each place the nearest new video at or after it
    nearest = np.where(new, np.arange(len(new)), len(items))
    nearest = np.minimum.accumulate(nearest[::-1])[::-1]
    targets: npt.NDArray[np.int64] = np.append(items, NO_TARGET)[nearest]
    return targets


def hold_out(log: EventLog, config: ModelConfig, catalog: Catalog) -> tuple[list[History], list[HeldOut]]:
    """Set each user's last new watched video aside: the histories to learn from, and the tests.

    New is what the history does not hold that the daemon would have then. A user whose only such video is
    the first event stays in the training part and is not tested.
    """
    training, tests = [], []
    for history in log.histories.values():
        items = catalog.indices(history.video_ids)
        watched = np.flatnonzero((history.records["event_type"] == WATCH) & (items < config.n_items))
        for place in watched[watched > 0][::-1].tolist():
            begin = _start_of_last_window(place, config)
            if items[place] not in items[begin:place]:
                training.append(_part(history, 0, place))
                tests.append(HeldOut(_part(history, begin, place), int(items[place])))
                break
        else:
            training.append(history)
    return training, tests


def make_windows(histories: list[History], config: ModelConfig, catalog: Catalog) -> Windows:
    """Cut, encode and label the histories of all users."""
    dropped = config.capacity - config.max_events
    stride = dropped * max(1, config.capacity // (2 * dropped))
    parts: list[History] = []
    labels: list[npt.NDArray[np.int64]] = []
    for history in histories:
        items = catalog.indices(history.video_ids)
        begin = 0
        while True:
            end = min(begin + config.capacity, len(history))
            part = _part(history, begin, end)
            targets = next_new_videos(part, items[begin:end], config.n_items)
            if begin:
                targets[: config.capacity - stride] = NO_TARGET
            if (targets != NO_TARGET).any():
                parts.append(part)
                labels.append(targets)
            if end == len(history):
                break
            begin += stride
    encoded = RowEncoder(config, catalog).encode_batch(parts)
    return Windows(
        rows=encoded.rows,
        token_ids=encoded.token_ids,
        targets=np.concatenate(labels) if labels else np.empty(0, np.int64),
        starts=np.cumsum(encoded.lengths) - encoded.lengths,
        lengths=encoded.lengths,
    )


def _part(history: History, begin: int, end: int) -> History:
    return History(history.records[begin:end], history.video_ids[begin:end])


def _start_of_last_window(events: int, config: ModelConfig) -> int:
    """How many of a user's events the daemon has dropped after folding in so many."""
    surplus = events - config.capacity
    dropped = config.capacity - config.max_events
    return max(0, -(-surplus // dropped) * dropped)
