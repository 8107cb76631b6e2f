"""Several engines of one checkpoint behind the face of one: data parallel, each user with an engine of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from xxhash import xxh3_64_intdigest

from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ModelInfo, NewVideo

T = TypeVar("T")


class Replica(Protocol):
    """What `Replicas` asks of an engine."""

    async def start(self) -> ModelInfo: ...

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]: ...

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos: ...

    async def close(self) -> None: ...


R = TypeVar("R", bound=Replica)


class Replicas(Generic[R]):
    """Asks for a user's lists always the same replica, which has their history cached, and tells all of new videos.

    What one raises, this raises, once the others have done their part: who is to restart it is for the replicas. So
    each may be supervised by itself, and the others go on while it restarts.
    """

    def __init__(self, replicas: Sequence[R]) -> None:
        """One replica or more, all of the same checkpoint."""
        self.replicas: Final = tuple(replicas)

    def replica_of(self, user_id: str) -> int:
        """The number of a user's replica; it depends on nothing but the id and how many there are."""
        return xxh3_64_intdigest(user_id.encode()) % len(self.replicas)

    async def start(self) -> ModelInfo:
        """Start all at once and wait until all serve; what they raise closes all."""
        try:
            infos = await all_of([replica.start() for replica in self.replicas])
        except BaseException:
            await self.close()
            raise
        return infos[0]

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; the replicas work at once."""
        places: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(self.replica_of(request.user_id), []).append(place)
        made = await all_of(
            [
                self.replicas[number].recommend([requests[place] for place in own])
                for number, own in places.items()
            ]
        )
        outcomes: dict[int, ListOutcome] = {}
        for own, lists in zip(places.values(), made, strict=True):
            outcomes.update(zip(own, lists, strict=True))
        return [outcomes[place] for place in range(len(requests))]

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended by all; refused are those that any of them has not."""
        outcomes = await all_of([replica.add_videos(videos) for replica in self.replicas])
        refused = {video_id for outcome in outcomes for video_id in outcome.refused}
        least = min(outcomes, key=lambda outcome: outcome.added)
        return AddedVideos(
            least.added, least.known, [video.video_id for video in videos if video.video_id in refused]
        )

    async def close(self) -> None:
        """Close all; calling it again does nothing."""
        await all_of([replica.close() for replica in self.replicas])


async def all_of(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all give, in their order; the first error once all are done."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
