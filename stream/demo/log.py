"""The log that the demo plays: what the model learns from, what is history, and what comes live."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from msgspec import Struct

from mtgr.datasets import read_events, read_file, split_by_time
from mtgr.errors import InputError
from mtgr.simulator import Simulation, simulate
from schemas.codecs import encode_event
from schemas.events import Event

TRAINING_SHARE: Final = 0.8
_SIMULATION: Final = Simulation(users=2_000, videos=3_000, events=150_000)


class DemoLog(Struct, frozen=True):
    """One log cut in two by time; history and live events are those of the users who are followed."""

    training: Path
    """Every event before the cut, as JSON lines."""
    training_events: int
    history: list[Event]
    """Events before the cut."""
    live: list[Event]
    """Events after it."""
    skipped: int
    """Lines of the log that hold no valid event."""

    @property
    def users(self) -> int:
        """Users who are followed."""
        return len({event.user_id for event in self.history})


def prepare_log(files: list[Path], directory: Path, users: int) -> DemoLog:
    """Cut event logs in two, and follow the users with the longest histories at the cut.

    Raises InputError for files that are no event logs, and where none of those users comes back.
    """
    skipped: list[InputError] = []
    split = split_by_time(files, TRAINING_SHARE, directory, on_invalid=skipped.append)
    lengths = Counter(event.user_id for event in read_events([split.earlier]))
    followed = {user for user, _ in lengths.most_common(users)}
    live = [event for event in read_events([split.later]) if event.user_id in followed]
    if not live:
        raise InputError(
            f"{files[0]}: none of the {len(followed)} users with the longest histories has an event in the "
            f"last {1 - TRAINING_SHARE:.0%} of the log"
        )
    return DemoLog(
        training=split.earlier,
        training_events=split.earlier_events,
        history=[event for event in read_events([split.earlier]) if event.user_id in followed],
        live=live,
        skipped=len(skipped),
    )


def simulated_log(directory: Path) -> list[Path]:
    """A file with the events of simulated users."""
    file = directory / "simulated.jsonl"
    with file.open("wb") as lines:
        lines.writelines(encode_event(event) + b"\n" for event in simulate(_SIMULATION))
    return [file]


def event_logs(path: Path) -> list[Path]:
    """The file itself, or the files of a folder that are event logs; raises InputError if there are none."""
    if not path.is_dir():
        return [path]
    logs = [file for file in sorted(path.iterdir()) if file.is_file() and _is_event_log(file)]
    if not logs:
        raise InputError(f"{path}: holds no event log (JSON lines of events, or a KuaiRand log, gzip or not)")
    return logs


def _is_event_log(file: Path) -> bool:
    try:
        return next(read_file(file), None) is not None
    except InputError:
        return False
