"""The videos of a simulation: what they are about, how long, how good, how popular, and since when."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Container
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random
from typing import Final

_BORN_BEFORE: Final = 0.7  # of the videos; the others are born while the simulation runs
_ZIPF_EXPONENT: Final = 0.9
_ZIPF_OFFSET: Final = (
    3  # ranks are shifted by it (Zipf-Mandelbrot), or the first would be watched by everybody
)
_HAS_NEXT_PART: Final = 0.5  # of the videos
_NOVELTY: Final = 0.1  # of the choices go by birth, not by popularity
_NEWEST: Final = 20
_TRIES: Final = 4


@dataclass(frozen=True, slots=True)
class Videos:
    """Videos by index; times are seconds since the simulation's start.

    The videos of a topic stand in the order of their birth, so that those already born are a prefix of them.
    """

    topic: list[int]
    seconds: list[float]
    quality: list[float]
    birth: list[float]
    next_part: list[int]  # -1 for none
    of_topic: list[list[int]]
    births_of_topic: list[list[float]]
    popularity_of_topic: list[list[float]]  # summed up
    topic_shares: list[float]  # summed up

    @classmethod
    def make(cls, count: int, topics: int, span: float, random: Random) -> Videos:
        """`count` videos on `topics` topics, some of them born over `span` seconds."""
        shares = list(accumulate((place + 1) ** -0.5 for place in range(topics)))
        # the first of each topic is there from the start, so that no topic is ever empty
        topic = [v if v < topics else pick(shares, random.random()) for v in range(count)]
        birth = [
            0.0 if v < topics or random.random() < _BORN_BEFORE else random.random() * span
            for v in range(count)
        ]
        of_topic: list[list[int]] = [[] for _ in range(topics)]
        for video in sorted(range(count), key=birth.__getitem__):
            of_topic[topic[video]].append(video)
        next_part = [-1] * count
        for videos in of_topic:
            for one, other in pairwise(videos):
                if random.random() < _HAS_NEXT_PART:
                    next_part[one] = other
        ranks = list(range(count))
        random.shuffle(ranks)
        weights = [(rank + _ZIPF_OFFSET) ** -_ZIPF_EXPONENT for rank in ranks]
        typical = [random.uniform(12.0, 60.0) for _ in range(topics)]
        lengths = [typical[topic[v]] * random.lognormvariate(0.0, 0.5) for v in range(count)]
        return cls(
            topic=topic,
            seconds=[round(min(max(length, 3.0), 1800.0), 3) for length in lengths],
            quality=[random.uniform(0.6, 1.1) for _ in range(count)],
            birth=birth,
            next_part=next_part,
            of_topic=of_topic,
            births_of_topic=[[birth[v] for v in videos] for videos in of_topic],
            popularity_of_topic=[list(accumulate(weights[v] for v in videos)) for videos in of_topic],
            topic_shares=shares,
        )

    def choose(self, topic: int, now: float, seen: Container[int], random: Random) -> int:
        """A video of the topic that is born by now, by popularity or by novelty; rarely one that is seen."""
        videos = self.of_topic[topic]
        born = bisect_right(self.births_of_topic[topic], now)
        summed = self.popularity_of_topic[topic]
        draw = random.random
        video = videos[0]
        for _ in range(_TRIES):
            if draw() < _NOVELTY:
                newest = max(born - _NEWEST, 0)
                video = videos[newest + int(draw() * (born - newest))]
            else:
                video = videos[bisect_left(summed, draw() * summed[born - 1], 0, born - 1)]
            if video not in seen:
                break
        return video


def pick(summed: list[float], draw: float) -> int:
    """The place that a draw from [0, 1) falls on, where weights are summed up."""
    return bisect_right(summed, draw * summed[-1], 0, len(summed) - 1)
