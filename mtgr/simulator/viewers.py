"""The users of a simulation: what they like, when they come, and what they do in a session."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Final, Literal

from mtgr.simulator.videos import Videos, pick

DAY: Final = 86_400.0
MEAN_SESSIONS_A_DAY: Final = 3.0
MEAN_WATCHES: Final = 8.0  # in a session

_TASTE: Final = (1.0, 0.85, 0.7, 0.55)  # for the liked topics
_OTHER_TASTE: Final = 0.12  # for every other topic
_TASTE_SHARES: Final = list(accumulate((0.55, 0.25, 0.13, 0.07)))  # how often each liked topic is the one
_EXPLORING: Final = 0.15  # of the changes of topic go anywhere
_TIRING: Final = 0.25  # of the videos are the last of their topic, however they please
_DRIFTING: Final = 0.06  # of the sessions bring a new liked topic
_FOLLOWING: Final = 0.6  # of the videos watched so far that a next part comes next
_FOLLOWED_RATIO: Final = 0.6
_PLEASING_RATIO: Final = 0.5
_REMEMBERED: Final = 160  # videos that a user is not shown again
_MEAN_RHYTHM: Final = 0.55  # share of moments that the hour of the day lets pass

Reaction = Literal["like", "favorite", "share"]
_REACTIONS: Final[tuple[tuple[Reaction, float], ...]] = (("like", 1.0), ("favorite", 0.3), ("share", 0.15))


@dataclass(frozen=True, slots=True)
class Action:
    """What was done with a video, in seconds since the simulation's start; a watch is told at its end."""

    seconds: float
    video: int
    kind: Literal["watch"] | Reaction
    watched_seconds: float = 0.0


@dataclass(slots=True)
class Viewer:
    """One user. `hour` is the height of the day, `gap` the mean seconds between sessions at it."""

    topics: list[int]  # the most liked first
    gap: float
    hour: float
    patience: float
    expressive: float
    seen: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    @classmethod
    def make(cls, topics: int, random: Random) -> Viewer:
        """A user with tastes among so many topics; activity is log-normal with mean 1."""
        activity = random.lognormvariate(-0.32, 0.8)
        return cls(
            topics=random.sample(range(topics), len(_TASTE)),
            gap=DAY * _MEAN_RHYTHM / (MEAN_SESSIONS_A_DAY * activity),
            hour=random.gauss(20.0, 2.5),
            patience=random.uniform(0.75, 1.15),
            expressive=min(random.expovariate(1 / 0.08), 0.5),
        )

    def next_session(self, now: float, random: Random) -> float:
        """When the next session begins: a Poisson process, thinned by the hour of the day."""
        while True:
            now += 60.0 - math.log(1.0 - random.random()) * self.gap
            angle = 2 * math.pi * (now / 3600.0 - self.hour) / 24.0
            if random.random() < _MEAN_RHYTHM + (1.0 - _MEAN_RHYTHM) * math.cos(angle):
                return now

    def session(self, videos: Videos, now: float, random: Random) -> Iterator[Action]:
        """What happens in one sitting from now on, in order of time."""
        draw = random.random
        if draw() < _DRIFTING:
            self._drift(pick(videos.topic_shares, draw()))
        topic = self.topics[pick(_TASTE_SHARES, draw())]
        video, ratio = -1, 0.0
        while True:
            part = videos.next_part[video] if ratio > _FOLLOWED_RATIO else -1
            if part >= 0 and videos.birth[part] <= now and part not in self.seen and draw() < _FOLLOWING:
                video = part
            else:
                if ratio < _PLEASING_RATIO or draw() < _TIRING:
                    exploring = draw() < _EXPLORING
                    shares = videos.topic_shares if exploring else _TASTE_SHARES
                    place = pick(shares, draw())
                    topic = place if exploring else self.topics[place]
                video = videos.choose(topic, now, self.seen, random)
            self.seen.append(video)

            taste = _TASTE[self.topics.index(topic)] if topic in self.topics else _OTHER_TASTE
            length = videos.seconds[video]
            ratio = _watch_ratio(taste * videos.quality[video] * self.patience, length, random)
            watched = round(ratio * length, 3)
            now += 0.3 + watched
            yield Action(now, video, "watch", watched)
            if ratio > _PLEASING_RATIO:
                for kind, share in _REACTIONS:
                    if draw() < self.expressive * taste * share:
                        now += 0.5 + 2.0 * draw()
                        yield Action(now, video, kind)
            if draw() * MEAN_WATCHES < 1.0:
                return

    def _drift(self, topic: int) -> None:
        """Like one more topic, second to the first, and the least liked no longer."""
        if topic != self.topics[0]:
            others = [liked for liked in self.topics[1:] if liked != topic]
            self.topics = [self.topics[0], topic, *others][: len(_TASTE)]


def _watch_ratio(appeal: float, length: float, random: Random) -> float:
    """Skipped soon, left on the way, seen to the end or again: longer with appeal, and if short."""
    draw = random.random
    appeal = min(appeal * math.pow(30.0 / length, 0.1), 1.0)
    if draw() > 0.25 + 0.75 * appeal:
        return 0.01 + 0.19 * draw()
    if draw() < 0.45 * appeal:
        return 1.0 if draw() < 0.85 else 1.0 + 1.5 * math.pow(draw(), 2.0)
    return 0.2 + 0.8 * math.pow(draw(), 1.0 / (0.5 + 1.5 * appeal))
