"""The events of many users' sessions in one order of time, and what is known of users and videos beforehand."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from random import Random
from typing import Final, NamedTuple

from msgspec import Struct

from mtgr.errors import InputError
from mtgr.simulator.videos import Videos
from mtgr.simulator.viewers import DAY, MEAN_SESSIONS_A_DAY, MEAN_WATCHES, Action, Viewer
from schemas.bounds import MAX_TIMESTAMP_MS
from schemas.events import Event, Favorite, Like, Profile, Share, Watch
from schemas.videos import Video

_TOPICS: Final = 16
_VIDEOS_OF_AUTHOR: Final = 20  # on average
_TOLD_INTERESTS: Final = 2
_CHANNELS: Final = ("message", "feed", "link")


class Simulation(Struct, frozen=True, kw_only=True):
    """How many users, videos and events, from which seed and time; equal simulations give equal events."""

    users: int = 1_000
    videos: int = 2_000
    events: int = 100_000
    seed: int = 0
    start_ms: int = 1_704_067_200_000  # 2024-01-01 00:00 UTC

    def check(self) -> None:
        """Raises InputError naming the number that is out of its bounds."""
        bounds = {
            "users": (1, 100_000_000),
            "videos": (_TOPICS, 100_000_000),
            "events": (0, 1_000_000_000_000),
            "start_ms": (0, MAX_TIMESTAMP_MS),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"{name}: {value} should be from {least} to {most}")


def simulate(simulation: Simulation) -> Iterator[Event]:
    """The events of a simulation in time order; memory grows with users and videos, not with events.

    Raises InputError for numbers out of bounds, before the first event, and where the events would reach
    beyond the year 2100.
    """
    simulation.check()
    return _simulate(simulation)


def describe_videos(simulation: Simulation) -> Iterator[Video]:
    """What is known of a simulation's videos before anybody watches them: category, author, tags and length.

    A series has one author; an author keeps to one category. Raises InputError for numbers out of bounds.
    """
    simulation.check()
    videos = _Population.of(simulation).videos
    random = Random(f"authors {simulation.seed}")
    authors = max(simulation.videos // _VIDEOS_OF_AUTHOR // _TOPICS, 2)
    author_of: dict[int, str] = {}
    series_of: dict[int, str] = {}
    for topic, of_topic in enumerate(videos.of_topic):
        for video in of_topic:  # by birth, so that a part comes before the next
            author = author_of.setdefault(video, f"a{topic:02d}-{random.randrange(authors)}")
            if (part := videos.next_part[video]) >= 0:
                author_of[part] = author
                series_of[part] = series_of.setdefault(video, f"series-{video}")
    for video, (topic, seconds, birth) in enumerate(
        zip(videos.topic, videos.seconds, videos.birth, strict=True)
    ):
        category = _category(topic)
        tags = [category, series_of[video]] if video in series_of else [category]
        yield Video(
            video_id=_video_id(video),
            attributes={"category": category, "author": author_of[video], "tags": tags, "seconds": seconds},
            timestamp_ms=min(simulation.start_ms + int(birth * 1000), MAX_TIMESTAMP_MS),
        )


def describe_users(simulation: Simulation) -> Iterator[Profile]:
    """What a simulation's users have told of themselves at its start: interests, the strongest first, and the hour
    at which they mostly come. Raises InputError for numbers out of bounds.
    """
    simulation.check()
    for user, viewer in enumerate(_Population.of(simulation).viewers):
        yield Profile(
            event_id=f"{simulation.seed:x}-profile-{user:x}",
            user_id=_user_id(user),
            timestamp_ms=simulation.start_ms,
            attributes={
                "interests": [_category(topic) for topic in viewer.topics[:_TOLD_INTERESTS]],
                "hour": float(int(viewer.hour) % 24),
            },
        )


class _Population(NamedTuple):
    random: Random
    """As it stands once these are made."""
    videos: Videos
    viewers: list[Viewer]

    @classmethod
    def of(cls, simulation: Simulation) -> _Population:
        random = Random(simulation.seed)
        span = simulation.events / simulation.users / (MEAN_SESSIONS_A_DAY * MEAN_WATCHES) * DAY
        videos = Videos.make(simulation.videos, _TOPICS, span, random)
        return cls(random, videos, [Viewer.make(_TOPICS, random) for _ in range(simulation.users)])


def _simulate(simulation: Simulation) -> Iterator[Event]:
    random, videos, viewers = _Population.of(simulation)
    # (seconds, user), the earliest first
    beginnings = [(viewer.next_session(0.0, random), user) for user, viewer in enumerate(viewers)]
    heapq.heapify(beginnings)
    # (seconds, event number, event) of the sessions that have begun
    under_way: list[tuple[float, int, Event]] = []
    write = _Writer(simulation, videos)
    sent = 0
    for session in range(simulation.events):  # every session has an event
        begin, user = beginnings[0]
        while under_way and under_way[0][0] <= begin:
            yield heapq.heappop(under_way)[2]
            sent += 1
            if sent == simulation.events:
                return
        viewer = viewers[user]
        end = begin
        for action in viewer.session(videos, begin, random):
            end = action.seconds
            heapq.heappush(under_way, (end, write.count, write(user, session, action)))
        heapq.heapreplace(beginnings, (viewer.next_session(end, random), user))
    for _ in range(simulation.events - sent):
        yield heapq.heappop(under_way)[2]


class _Writer:
    """Writes down actions as events, and numbers them."""

    def __init__(self, simulation: Simulation, videos: Videos) -> None:
        self.count = 0
        self._prefix = f"{simulation.seed:x}-"
        self._start_ms = simulation.start_ms
        self._seconds = videos.seconds

    def __call__(self, user: int, session: int, action: Action) -> Event:
        event_id = f"{self._prefix}{self.count:x}"
        self.count += 1
        user_id, video_id, session_id = _user_id(user), _video_id(action.video), f"s{session:x}"
        timestamp_ms = self._start_ms + int(action.seconds * 1000)
        if timestamp_ms > MAX_TIMESTAMP_MS:
            raise InputError("events: they reach beyond the year 2100; simulate more users or fewer events")
        if action.kind == "watch":
            length = self._seconds[action.video]
            return Watch(
                event_id=event_id,
                user_id=user_id,
                video_id=video_id,
                timestamp_ms=timestamp_ms,
                watch_seconds=action.watched_seconds,
                watch_ratio=round(action.watched_seconds / length, 4),
                video_seconds=length,
                session_id=session_id,
            )
        if action.kind == "share":
            return Share(
                event_id=event_id,
                user_id=user_id,
                video_id=video_id,
                timestamp_ms=timestamp_ms,
                channel=_CHANNELS[self.count % len(_CHANNELS)],
                session_id=session_id,
            )
        make = Like if action.kind == "like" else Favorite
        return make(
            event_id=event_id,
            user_id=user_id,
            video_id=video_id,
            timestamp_ms=timestamp_ms,
            session_id=session_id,
        )


def _user_id(user: int) -> str:
    return f"u{user:06d}"


def _video_id(video: int) -> str:
    return f"v{video:06d}"


def _category(topic: int) -> str:
    return f"topic-{topic:02d}"
