"""The log that the demo plays: what the model learns from, what is history and what comes live; and what is known of
videos and users besides.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from msgspec import Struct

from mtgr.datasets import read_events, read_file, split_by_time
from mtgr.datasets.attributes import read_attributes
from mtgr.errors import InputError
from mtgr.simulator import Simulation, describe_users, describe_videos, simulate
from schemas.bounds import MAX_ID_CHARACTERS
from schemas.codecs import encode_event
from schemas.events import Event, Interaction, Profile, Watch
from schemas.videos import Video

TRAINING_SHARE: Final = 0.8
_SIMULATION: Final = Simulation(users=2_000, videos=3_000, events=150_000)


# as KuaiRand names its files, and the column in which it writes several values as one text
_VIDEO_FILES: Final = "video_features_basic*.csv*"
_USER_FILES: Final = "user_features*.csv*"
_LIST_COLUMNS: Final = {"tag": ","}
_KNOWN_SINCE_MS: Final = 0  # a file says nothing of when: before the first event


class Known(Struct, frozen=True):
    """What is known of videos and users beside what users do."""

    videos: list[Video] = []
    profiles: list[Profile] = []


class DemoLog(Struct, frozen=True):
    """One log cut in two by time; history and live events are those of the users who are followed."""

    training: list[Path]
    """Every event before the cut, and what is known of users, as JSON lines."""
    training_events: int
    videos: list[Video]
    """What is known of videos."""
    most_watched: list[str]
    """The videos of the training part, those watched most first."""
    history: list[Event]
    """Events before the cut, what is known of the user first."""
    live: list[Event]
    """Events after it."""
    skipped: int
    """Lines of the log that hold no valid event."""

    @property
    def users(self) -> int:
        """Users who are followed."""
        return len({event.user_id for event in self.history})


def prepare_log(files: list[Path], known: Known, directory: Path, users: int) -> DemoLog:
    """Cut event logs in two, and follow the users with the longest histories at the cut.

    Raises InputError for files that are no event logs, and where none of those users comes back.
    """
    skipped: list[InputError] = []
    split = split_by_time(files, TRAINING_SHARE, directory, on_invalid=skipped.append)
    lengths: Counter[str] = Counter()
    watched: Counter[str] = Counter()
    for event in read_events([split.earlier]):
        if isinstance(event, Interaction):
            lengths[event.user_id] += 1
        if isinstance(event, Watch):
            watched[event.video_id] += 1
    followed = {user for user, _ in lengths.most_common(users)}
    live = [event for event in read_events([split.later]) if event.user_id in followed]
    if not live:
        raise InputError(
            f"{files[0]}: none of the {len(followed)} users with the longest histories has an event in the "
            f"last {1 - TRAINING_SHARE:.0%} of the log"
        )
    training = [split.earlier]
    if known.profiles:
        profiles = directory / "profiles.jsonl"
        with profiles.open("wb") as lines:
            lines.writelines(encode_event(profile) + b"\n" for profile in known.profiles)
        training.insert(0, profiles)
    return DemoLog(
        training=training,
        training_events=split.earlier_events,
        videos=known.videos,
        most_watched=[video_id for video_id, _ in watched.most_common()],
        history=[event for event in read_events(training) if event.user_id in followed],
        live=live,
        skipped=len(skipped),
    )


def simulated_log(directory: Path) -> list[Path]:
    """A file with the events of simulated users."""
    file = directory / "simulated.jsonl"
    with file.open("wb") as lines:
        lines.writelines(encode_event(event) + b"\n" for event in simulate(_SIMULATION))
    return [file]


def simulated_knowledge() -> Known:
    """What the simulated users and videos of `simulated_log` are like."""
    return Known(list(describe_videos(_SIMULATION)), list(describe_users(_SIMULATION)))


def knowledge_of(path: Path) -> Known:
    """What a folder knows of videos and users beside its logs, where it is KuaiRand's; nothing for any other.

    Raises InputError for a file that cannot be read.
    """
    if not path.is_dir():
        return Known()
    videos = [
        Video(video_id=video_id, attributes=attributes)
        for file in sorted(path.glob(_VIDEO_FILES))
        for video_id, attributes in read_attributes(file, lists=_LIST_COLUMNS).items()
    ]
    profiles = [
        Profile(
            event_id=f"profile-{user_id}"[:MAX_ID_CHARACTERS],
            user_id=user_id,
            timestamp_ms=_KNOWN_SINCE_MS,
            attributes=attributes,
        )
        for file in sorted(path.glob(_USER_FILES))
        for user_id, attributes in read_attributes(file).items()
    ]
    return Known(videos, profiles)


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
