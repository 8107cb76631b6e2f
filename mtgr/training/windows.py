"""What is learnt from a log: windows of the users' histories, and the video to predict after each event.

The daemon lets a history grow to the config's capacity and then cuts it, so a long history is learnt in
windows of up to that length: they overlap, and a place that two of them share is learnt in the earlier one,
where more came before it. Where the mask is mixed, only the newest events of a sequence see their past alone, so
that each window is learnt at its newest events, and there are as many as it takes to learn all events so.

The target after an event is the next video that will be watched (or viewed long) and is not in the window so
far: lists leave seen videos out, and a like or a share of the video just watched is no news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig, dropped_events
from mtgr.evaluation.targets import Target, is_target
from mtgr.features import RowEncoder
from mtgr.history import WATCH, History
from mtgr.training.feedback import (
    NO_CONDITION,
    feedback_conditions,
    feedback_weights,
    outcomes,
    strongest_feedback,
)
from mtgr.training.options import TrainingOptions

NO_TARGET: Final = -1
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Windows:
    """Encoded windows, joined; window w is the rows starts[w] to starts[w] + lengths[w].

    rows: (total, lanes) float32; token_ids: (total,) int64 item indices; targets: (total,) int64, the item to
    predict from each row or NO_TARGET; weights: (total,) float32, of the targets, 1 on average; conditions:
    (total,) int8, of the targets, 1 for the first kind of `TrainingOptions.conditioned_on`, 0 for none of them;
    aims: (total,) bool, whether the row's event is a target itself; watches: (total,) bool, whether it is a watch;
    outcomes: (total, heads) bool, what the ranking heads should say of it; starts, lengths: (windows,) int64;
    users: (windows,) places in user_ids.
    """

    rows: npt.NDArray[np.float32]
    token_ids: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    conditions: npt.NDArray[np.int8]
    aims: npt.NDArray[np.bool_]
    watches: npt.NDArray[np.bool_]
    outcomes: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    users: npt.NDArray[np.int64]
    user_ids: list[str]

    def __len__(self) -> int:
        return len(self.lengths)


def aims(
    history: History, items: npt.NDArray[np.int64], n_items: int, target: Target, *, only_new: bool
) -> npt.NDArray[np.bool_]:
    """Whether each event is one to predict: a target whose video is in the catalog, and new where that is asked."""
    wanted = is_target(history, target) & (items < n_items)
    if only_new:
        first: npt.NDArray[np.bool_] = np.zeros(len(items), np.bool_)
        first[np.unique(items, return_index=True)[1]] = True
        wanted &= first
    return wanted


def next_places(wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Before each event and after the last, where the next wanted one stands: (n + 1,), n where none follows."""
    places = np.append(np.where(wanted, np.arange(len(wanted)), len(wanted)), len(wanted))
    nearest: npt.NDArray[np.int64] = np.minimum.accumulate(places[::-1])[::-1]
    return nearest


def make_windows(
    histories: Mapping[str, History],
    config: ModelConfig,
    catalog: Catalog,
    options: TrainingOptions,
    *,
    only_new: bool = True,
    profile: Callable[[str, int], Mapping[str, Any]] = lambda user, time_ms: {},
) -> Windows:
    """Cut, encode and label the histories of all users.

    profile: a user's attributes at a time in milliseconds; a window has those at its end.
    """
    labels = _Labels(config, options, histories, only_new=only_new)
    parts: list[History] = []
    known: list[Mapping[str, Any]] = []
    users: list[int] = []
    for user, (user_id, history) in enumerate(histories.items()):
        items = catalog.indices(history.video_ids)
        for cut in _cuts(len(history), config):
            if labels.add(history, items, cut):
                part = _part(history, cut.begin, cut.end)
                parts.append(part)
                users.append(user)
                known.append(profile(user_id, int(part.records["timestamp_ms"][-1]) if len(part) else 0))
    encoded = RowEncoder(config, catalog).encode_batch(parts, known)
    targets, weights = np.concatenate(labels.targets), np.concatenate(labels.weights)
    mean = weights[targets != NO_TARGET].mean() if len(parts) else 0.0
    return Windows(
        rows=encoded.rows,
        token_ids=encoded.token_ids,
        targets=targets,
        weights=weights / mean if mean > 0 else weights,
        conditions=np.concatenate(labels.conditions),
        aims=np.concatenate(labels.aims),
        watches=np.concatenate(labels.watches),
        outcomes=np.concatenate(labels.outcomes),
        starts=np.cumsum(encoded.lengths) - encoded.lengths,
        lengths=encoded.lengths,
        users=np.array(users, np.int64),
        user_ids=list(histories),
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """Events begin to end of a history are a window, learnt from the place `first` on; up to `ahead` it is looked
    for what its last event leads to.
    """

    begin: int
    end: int
    first: int
    ahead: int


class _Labels:
    """The columns of `Windows` that say what is learnt, window by window, each with the profile's place first."""

    def __init__(
        self,
        config: ModelConfig,
        options: TrainingOptions,
        histories: Mapping[str, History],
        *,
        only_new: bool,
    ) -> None:
        heads = len(config.ranking)
        self.targets: Final = [np.empty(0, np.int64)]
        self.weights: Final = [np.empty(0, np.float32)]
        self.conditions: Final = [np.empty(0, np.int8)]
        self.aims: Final = [np.empty(0, np.bool_)]
        self.watches: Final = [np.empty(0, np.bool_)]
        self.outcomes: Final = [np.empty((0, heads), np.bool_)]
        self._config: Final = config
        self._options: Final = options
        self._only_new: Final = only_new
        self._weight_of: Final = feedback_weights(options.weights)
        self._told: Final = bool(options.weights or options.conditioned_on)
        self._condition_of: Final = feedback_conditions(options.conditioned_on)
        times = [int(history.records["timestamp_ms"].max()) for history in histories.values() if len(history)]
        self._end_ms: Final = max(times, default=0)

    def add(self, history: History, items: npt.NDArray[np.int64], cut: _Cut) -> bool:
        """Label a window, unless there is nothing to learn in it."""
        seen = _part(history, cut.begin, cut.ahead)
        items = items[cut.begin : cut.ahead]
        aimed = aims(seen, items, self._config.n_items, self._options.target, only_new=self._only_new)
        length = cut.end - cut.begin
        nearest = next_places(aimed)[: length + 1]
        nearest[: cut.first - cut.begin] = len(items)
        if (nearest == len(items)).all():
            return False
        self.targets.append(np.append(items, NO_TARGET)[nearest])
        feedback = strongest_feedback(seen, items) if self._told else np.zeros(len(items), np.int8)
        self.weights.append(np.append(self._weights(seen, feedback), np.float32(0))[nearest])
        self.conditions.append(np.append(self._condition_of[feedback], np.int8(NO_CONDITION))[nearest])
        self.aims.append(_behind_profile(aimed[:length]))
        self.watches.append(_behind_profile(seen.records["event_type"][:length] == WATCH))
        self.outcomes.append(
            _behind_profile(outcomes(_part(seen, 0, length), items[:length], self._config.ranking))
        )
        return True

    def _weights(self, history: History, feedback: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        weights = self._weight_of[feedback]
        if self._options.half_life_days is not None:
            age = (self._end_ms - history.records["timestamp_ms"]) / (self._options.half_life_days * _DAY_MS)
            weights = weights * np.exp2(-age).astype(np.float32)
        return weights


def _cuts(events: int, config: ModelConfig) -> Iterator[_Cut]:
    if config.mask == "mixed":
        end = events - 1
        while end >= 0:
            begin = dropped_events(end, config.max_events)
            first = end - config.recent_events + 1 if end > config.recent_events else 0
            first = max(first, begin + 1) if begin else first
            yield _Cut(begin, end, first, min(events, end + config.recent_events))
            end = first - 1
        return
    dropped = config.capacity - config.max_events
    stride = dropped * max(1, config.capacity // (2 * dropped))
    begin = 0
    while True:
        end = min(begin + config.capacity, events)
        yield _Cut(begin, end, begin + config.capacity - stride if begin else 0, end)
        if end == events:
            return
        begin += stride


def _behind_profile(column: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded: npt.NDArray[np.bool_] = np.zeros((len(column) + 1, *column.shape[1:]), np.bool_)
    padded[1:] = column
    return padded


def _part(history: History, begin: int, end: int) -> History:
    return History(history.records[begin:end], history.video_ids[begin:end])
