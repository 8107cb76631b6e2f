"""Whether users went on to watch what they had just been recommended, and what popularity would have recommended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from msgspec import Struct

from schemas.lists import RecommendationList
from stream.demo.ledger import Arrival, StoredEvent


class NextVideos(Struct, frozen=True):
    """How often the next video that a user watched, one new to that user, was in a list."""

    moments: int
    """Lists after which their user watched a new video, before the next list came."""
    listed: int
    """Times it was in that list."""
    popular: int
    """Times it was among as many of the most watched videos that the user had not seen when that list was made."""


def next_videos(
    events: Iterable[StoredEvent],
    arrivals: Sequence[Arrival],
    live_from: Mapping[int, int],
    most_watched: Sequence[str],
) -> NextVideos:
    """Judge the lists that were live when a user next watched a new video, from `live_from` (partition to offset) on.

    A list is live from its arrival to that of the user's next one, and a watch belongs to the list that was live when
    it was sent; a list is judged by the first new video only. A video is new to a user who has had no event with it
    before. Popularity is given what the list's maker knew of the user: events up to the list's trigger.
    """
    by_user: dict[str, list[StoredEvent]] = defaultdict(list)
    for event in events:
        if event.video_id is not None:
            by_user[event.user_id].append(event)
    lists: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        lists[arrival.recommended.user_id].append(arrival)
    moments = listed = popular = 0
    for user_id, theirs in by_user.items():
        for watched, live, seen in _moments(sorted(theirs), lists[user_id], live_from):
            moments += 1
            listed += watched in {item.video_id for item in live.items}
            popular += watched in _most_watched(most_watched, seen, len(live.items))
    return NextVideos(moments, listed, popular)


def _moments(
    events: Sequence[StoredEvent], arrivals: Sequence[Arrival], live_from: Mapping[int, int]
) -> Iterator[tuple[str, RecommendationList, set[str]]]:
    """The new video, the list that was live, and what that list's maker had seen of the user, for each list judged."""
    known: set[str] = set()
    live: RecommendationList | None = None
    judged = -1  # offset of the trigger of the last list judged
    left = iter(arrivals)
    coming = next(left, None)
    for event in events:
        while coming is not None and coming.arrived_ms < event.sent_ms:
            # delivered twice, an old list does not replace a newer one
            if live is None or coming.recommended.trigger.offset > live.trigger.offset:
                live = coming.recommended
            coming = next(left, None)
        video_id = event.video_id
        assert video_id is not None
        is_new = video_id not in known
        known.add(video_id)
        if not (is_new and event.watched and event.offset >= live_from[event.partition]):
            continue
        if live is not None and live.trigger.offset > judged:
            judged = live.trigger.offset
            last = live.trigger.offset
            yield video_id, live, {e.video_id for e in events if e.offset <= last and e.video_id is not None}


def _most_watched(ranking: Sequence[str], seen: Collection[str], count: int) -> list[str]:
    return list(islice((video_id for video_id in ranking if video_id not in seen), count))
