"""Which part of an event log is learnt from, and which videos are then to be predicted from what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, get_args

import numpy as np
from msgspec import Meta, Struct

from mtgr.errors import InputError
from mtgr.evaluation.targets import Target, target_places
from mtgr.history import History
from mtgr.training.log import EventLog

Part = Literal["training", "validation", "test"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

_DAY_MS: Final = 86_400_000
_NOUNS: Final[dict[Target, str]] = {"watch": "watched videos", "long-view": "long views"}


@dataclass(frozen=True, slots=True)
class Case:
    """One prediction to make: the video that a user went on to at `timestamp_ms`, from the events known before it.

    asked_ms: when the list is asked for, which is the target's time, or the cut where histories end at one.
    """

    user_id: str
    history: History
    video_id: str
    timestamp_ms: int
    asked_ms: int


@dataclass(frozen=True, slots=True)
class Split:
    """An event log divided: no part holds anything of a later one.

    training: what a model may learn from while `validation` judges it. known: all that lies before the test
    cases, the validation part included: what a model may learn from in the end, and what popularity is counted
    on. Both are user -> history. validation and test hold at most one case for each user.
    """

    training: dict[str, History]
    known: dict[str, History]
    validation: list[Case]
    test: list[Case]


class LeaveOneOut(Struct, frozen=True, kw_only=True, tag_field="split", tag="leave-one-out"):
    """Each user's last target is the test, the one before it the validation, and what is before both is learnt.

    A test case knows all of its user's events before the target, the validation target among them. A user
    without two such targets, each after at least one event, stays in the training part alone.
    """

    target: Target = "watch"
    exclude_seen: bool = True
    """Whether lists leave out the videos of the history; a target is then a video that is not in it."""

    def split(self, log: EventLog, needs: Collection[Part] = PARTS) -> Split:
        """Divide a log; InputError if it has one user only, or if a part that is needed would be empty."""
        _check_users(log)
        training, known = {}, {}
        validation, test = [], []
        for user, history in log.histories.items():
            places = target_places(history, self.target, only_new=self.exclude_seen)
            places = places[places > 0]
            if len(places) < 2:
                training[user] = known[user] = history
                continue
            before, last = places[-2:].tolist()
            validation.append(_case(user, history, before))
            test.append(_case(user, history, last))
            training[user], known[user] = validation[-1].history, test[-1].history
        split = Split(training, known, validation, test)
        reason = (
            f"none of the {len(log.histories):,} users has two {_described(self)} after a first event; "
            "a split by time may fit this log"
        )
        _check_parts(split, needs, "leave-one-out", dict.fromkeys(PARTS, reason))
        return split


class TimeSplit(Struct, frozen=True, kw_only=True, tag_field="split", tag="time"):
    """What is before a moment is learnt; each user's first target at or after it is the test.

    Validation is the same by an earlier moment: the part before the cut is itself cut `validation_days` before
    its end. A user of whom nothing is known by then is not tested.
    """

    cut_ms: Annotated[int, Meta(ge=0)]
    """Milliseconds since 1970."""
    target: Target = "watch"
    exclude_seen: bool = True
    """Whether lists leave out the videos of the history; a target is then a video that is not in it."""
    frozen: bool = True
    """Whether histories end at the cut, as with models that are fitted and left; else a case also knows what its
    user did between the cut and the target, as the daemon does."""
    validation_days: Annotated[float, Meta(gt=0)] = 1.0

    def split(self, log: EventLog, needs: Collection[Part] = PARTS) -> Split:
        """Divide a log; InputError if it has one user only, if the cut is not within the log's times, or if a
        part that is needed would be empty.
        """
        _check_users(log)
        first, last = _first_and_last(log)
        if not first < self.cut_ms <= last:
            raise InputError(
                f"cut: {_moment(self.cut_ms)} is not within the log, which goes from {_moment(first)} "
                f"to {_moment(last)}"
            )
        inner_ms = self.cut_ms - round(self.validation_days * _DAY_MS)
        known = {
            user: part
            for user, history in log.histories.items()
            if len(part := _before(history, self.cut_ms))
        }
        training = {user: part for user, history in known.items() if len(part := _before(history, inner_ms))}
        split = Split(
            training,
            known,
            self._cases(known, training, inner_ms),
            self._cases(log.histories, known, self.cut_ms),
        )
        begin, end = _moment(inner_ms), _moment(self.cut_ms)
        none = f"none of the users known by then has one of the {_described(self)}"
        reasons: dict[Part, str] = {
            "training": f"nothing happened before {begin}, where the validation part begins",
            "validation": f"{none} between {begin} and {end}",
            "test": f"{none} after {end}",
        }
        _check_parts(split, needs, "time", reasons)
        return split

    def _cases(
        self, histories: Mapping[str, History], known: Mapping[str, History], cut_ms: int
    ) -> list[Case]:
        """Each user's first target at or after a moment; `known` holds what is before it."""
        cases = (
            self._first_case(user, history, known.get(user), cut_ms) for user, history in histories.items()
        )
        return [case for case in cases if case is not None]

    def _first_case(self, user: str, history: History, known: History | None, cut_ms: int) -> Case | None:
        places = target_places(history, self.target, only_new=self.exclude_seen and not self.frozen)
        places = places[history.records["timestamp_ms"][places] >= cut_ms]
        if not self.frozen:
            places = places[places > 0]
            return _case(user, history, int(places[0])) if len(places) else None
        if known is None:
            return None
        seen = set(known.video_ids) if self.exclude_seen else set()
        for place in places.tolist():
            if history.video_ids[place] not in seen:
                return replace(_case(user, history, place), history=known, asked_ms=cut_ms)
        return None


Protocol = LeaveOneOut | TimeSplit


def parse_moment(text: str) -> int:
    """An ISO 8601 time, UTC where it names no zone, in milliseconds since 1970; ValueError if it is none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _case(user: str, history: History, place: int) -> Case:
    before = History(history.records[:place], history.video_ids[:place])
    time_ms = int(history.records["timestamp_ms"][place])
    return Case(user, before, history.video_ids[place], time_ms, time_ms)


def _before(history: History, cut_ms: int) -> History:
    """The events before a moment, in their order; events may have come late."""
    earlier = history.records["timestamp_ms"] < cut_ms
    count = int(np.count_nonzero(earlier))
    if earlier[:count].all():
        return History(history.records[:count], history.video_ids[:count])
    kept = np.flatnonzero(earlier)
    return History(history.records[kept], [history.video_ids[place] for place in kept.tolist()])


def _first_and_last(log: EventLog) -> tuple[int, int]:
    times = [history.records["timestamp_ms"] for history in log.histories.values() if len(history)]
    return min(int(column.min()) for column in times), max(int(column.max()) for column in times)


def _check_users(log: EventLog) -> None:
    users = sum(1 for history in log.histories.values() if len(history))
    if users < 2:
        raise InputError(
            f"the event log has {users} user{'' if users == 1 else 's'}, where at least 2 are wanted"
        )


def _check_parts(split: Split, needs: Collection[Part], name: str, reasons: dict[Part, str]) -> None:
    held = {"training": len(split.training), "validation": len(split.validation), "test": len(split.test)}
    for part in PARTS:
        if part in needs and not held[part]:
            raise InputError(f"split {name}: the {part} part is empty: {reasons[part]}")


def _described(protocol: Protocol) -> str:
    new = "new " if protocol.exclude_seen else ""
    return f"{new}{_NOUNS[protocol.target]}"


def _moment(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError):  # a time in a finer unit, say
        return f"{time_ms} ms"
