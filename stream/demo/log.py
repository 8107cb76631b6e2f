"""The log that the demo plays: what the model learns from, what is history, and what comes live."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from msgspec import Struct

from mtgr.datasets import read_events, read_file, split_by_time
from mtgr.errors import InputError
from mtgr.simulator import simulate
from schemas.codecs import encode_event
from schemas.events import Event, Interaction, Watch
from schemas.videos import Video
from stream.demo.knowledge import SIMULATION, Knowledge

TRAINING_SHARE: Final = 0.8


class DemoLog(Struct, frozen=True):
    """One log cut in two by time; history and live events are those of the users who are followed."""

    training: Path
    """Every event before the cut, as JSON lines."""
    training_events: int
    known: Knowledge
    """What is known of users, and of the videos before the cut."""
    new_videos: list[Video]
    """What is known of the others, which nobody has watched until then."""
    most_watched: list[str]
    """The videos of the training part, those watched most first."""
    history: list[Event]
    """What is known of these users, then their events before the cut."""
    live: list[Event]
    """Events after it."""
    skipped: int
    """Lines of the log that hold no valid event."""

    @property
    def users(self) -> int:
        """Users who are followed."""
        return len({event.user_id for event in self.history})


def prepare_log(files: list[Path], knowledge: Knowledge, directory: Path, users: int) -> DemoLog:
    """Cut event logs in two, and follow the users with the longest histories at the cut.

    Raises InputError for files that are no event logs, and where none of those users comes back.
    """
    skipped: list[InputError] = []
    split = split_by_time(files, TRAINING_SHARE, directory, on_invalid=skipped.append)
    lengths: Counter[str] = Counter()
    watched: Counter[str] = Counter()
    seen: set[str] = set()
    for event in read_events([split.earlier]):
        if isinstance(event, Interaction):
            lengths[event.user_id] += 1
            seen.add(event.video_id)
        if isinstance(event, Watch):
            watched[event.video_id] += 1
    followed = {user for user, _ in lengths.most_common(users)}
    live = [event for event in read_events([split.later]) if event.user_id in followed]
    if not live:
        raise InputError(
            f"{files[0]}: none of the {len(followed)} users with the longest histories has an event in the "
            f"last {1 - TRAINING_SHARE:.0%} of the log"
        )
    known, new_videos = knowledge.split(seen)
    return DemoLog(
        training=split.earlier,
        training_events=split.earlier_events,
        known=known,
        new_videos=new_videos,
        most_watched=[video_id for video_id, _ in watched.most_common()],
        history=[
            event
            for events in (knowledge.profiles, read_events([split.earlier]))
            for event in events
            if event.user_id in followed
        ],
        live=live,
        skipped=len(skipped),
    )


def simulated_log(directory: Path) -> list[Path]:
    """A file with the events of simulated users."""
    file = directory / "simulated.jsonl"
    with file.open("wb") as lines:
        lines.writelines(encode_event(event) + b"\n" for event in simulate(SIMULATION))
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
