"""What the demo knows of videos and users beside what users do, and which of it the model takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from mtgr.datasets.attributes import read_attributes
from mtgr.simulator import Simulation, describe_users, describe_videos
from schemas.bounds import MAX_ID_CHARACTERS
from schemas.codecs import encode_event, encode_video
from schemas.events import Profile
from schemas.videos import Video

SIMULATION: Final = Simulation(users=2_000, videos=3_000, events=150_000)
"""The users and videos that the demo makes up where it is given no log."""

# as KuaiRand names its files, and the column in which it writes several values as one text
_VIDEO_FILES: Final = "video_features_basic*.csv*"
_USER_FILES: Final = "user_features*.csv*"
_LIST_COLUMNS: Final = {"tag": ","}
_KNOWN_SINCE_MS: Final = 0  # a file says nothing of when: before the first event


class Taken(Struct, frozen=True):
    """The attributes that the model takes, by name: texts as categories, and numbers."""

    categories: tuple[str, ...]
    numbers: tuple[str, ...]

    def among(self, names: Collection[str]) -> Taken:
        """Those of these names."""
        return Taken(
            tuple(name for name in self.categories if name in names),
            tuple(name for name in self.numbers if name in names),
        )

    def options(self, of: str) -> list[str]:
        """As options of `mtgr-stream train`, of `video` or `user`."""
        named = {f"--{of}-categories": self.categories, f"--{of}-numbers": self.numbers}
        return [word for option, names in named.items() if names for word in (option, ",".join(names))]


_SIMULATED_OF_VIDEOS: Final = Taken(("author", "tags"), ("seconds",))
_SIMULATED_OF_USERS: Final = Taken(("interests",), ("hour",))
_KUAIRAND_OF_VIDEOS: Final = Taken(("author_id", "tag", "upload_type", "music_type"), ("video_duration",))
_KUAIRAND_OF_USERS: Final = Taken(
    ("user_active_degree", "follow_user_num_range", "fans_user_num_range", "register_days_range"), ()
)


class Knowledge(Struct, frozen=True):
    """What is known of videos and users; empty where it is nothing."""

    videos: list[Video] = []
    profiles: list[Profile] = []
    of_videos: Taken = Taken((), ())
    of_users: Taken = Taken((), ())

    def split(self, seen: Collection[str]) -> tuple[Knowledge, list[Video]]:
        """This with the videos that have been seen only, and the others: they will be new."""
        known = [video for video in self.videos if video.video_id in seen]
        new = [video for video in self.videos if video.video_id not in seen]
        return structs.replace(self, videos=known), new

    def training_options(self, directory: Path, new_videos: int) -> list[str]:
        """Options of `mtgr-stream train` by which it learns from this, in files of the directory, and keeps places for
        videos to come.
        """
        options: list[str] = []
        if self.profiles:
            profiles = _written(directory / "profiles.jsonl", map(encode_event, self.profiles))
            options += ["--events", str(profiles), *self.of_users.options("user")]
        if self.videos:
            videos = _written(directory / "videos.jsonl", map(encode_video, self.videos))
            options += ["--videos", str(videos), *self.of_videos.options("video")]
        return [*options, "--spare-items", str(new_videos)] if new_videos else options


def simulated_knowledge() -> Knowledge:
    """What the users and videos of `SIMULATION` are like."""
    return Knowledge(
        list(describe_videos(SIMULATION)),
        list(describe_users(SIMULATION)),
        _SIMULATED_OF_VIDEOS,
        _SIMULATED_OF_USERS,
    )


def knowledge_of(path: Path) -> Knowledge:
    """What a folder tells of videos and users beside its logs, where it is KuaiRand's; nothing of any other.

    Raises InputError for a file that cannot be read.
    """
    if not path.is_dir():
        return Knowledge()
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
    return Knowledge(
        videos,
        profiles,
        _KUAIRAND_OF_VIDEOS.among({name for video in videos for name in video.attributes}),
        _KUAIRAND_OF_USERS.among({name for profile in profiles for name in profile.attributes}),
    )


def _written(file: Path, lines: Iterable[bytes]) -> Path:
    with file.open("wb") as out:
        out.writelines(line + b"\n" for line in lines)
    return file
