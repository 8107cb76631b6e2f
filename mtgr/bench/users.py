"""Users that were never there: histories with the shape of a stream's, as requests and as token ids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mtgr.bench.cases import TOP
from mtgr.history import FAVORITE, LIKE, RECORD_BYTES, RECORD_DTYPE, SHARE, WATCH
from mtgr.requests import ListRequest

_START_MS: Final = 1_750_000_000_000  # fixed, so that the same seed gives the same histories
_TYPES: Final = ((WATCH, 0.9), (LIKE, 0.06), (FAVORITE, 0.02), (SHARE, 0.02))
_HEAD: Final = 3.0  # the exponent that makes few videos popular and most of them rare
_BREAK_SHARE: Final = 0.05


def video_name(index: int) -> str:
    """The id of a video in the catalogs of benchmarks."""
    return f"video-{index}"


class SyntheticUser:
    """One user's events, of which any number from the first on can be asked for."""

    __slots__ = ("_ends", "_records", "_videos", "indices", "user_id")

    def __init__(
        self, user_id: str, records: bytes, videos: bytes, ends: list[int], indices: npt.NDArray[np.int64]
    ) -> None:
        self.user_id = user_id
        self.indices = indices
        """(events,) item indices."""
        self._records = records
        self._videos = videos
        self._ends = ends  # of each event's video id among the joined ones

    def __len__(self) -> int:
        return len(self._ends)

    def request(self, events: int) -> ListRequest:
        """What the daemon would ask after so many events."""
        return ListRequest(
            self.user_id,
            self._records[: events * RECORD_BYTES],
            self._videos[: self._ends[events - 1]],
            TOP,
        )

    def token_ids(self, events: int, profile_id: int) -> list[int]:
        """The same as a plain model takes it: a first token for the profile, then one for each event."""
        return [profile_id, *self.indices[:events].tolist()]


class SyntheticUsers:
    """Draws users who are all different, from a catalog of `video_name`s."""

    def __init__(self, videos: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._names = [video_name(index).encode() for index in range(videos)]
        self._name_bytes = np.array([len(name) for name in self._names], np.uint16)
        self._numbers = itertools.count()
        self._seed = seed

    def draw(self, users: int, events: int) -> list[SyntheticUser]:
        """New users with so many events each: mostly watches, popular videos more often, with breaks between them."""
        random = self._random
        total = users * events
        indices = (len(self._names) * random.random(total) ** _HEAD).astype(np.int64)
        records = np.zeros(total, RECORD_DTYPE)
        records["event_digest"] = random.integers(0, 1 << 63, total)
        records["video_id_bytes"] = self._name_bytes[indices]
        types, shares = zip(*_TYPES, strict=True)
        records["event_type"] = random.choice(types, total, p=shares)
        gaps = random.lognormal(3.5, 1.0, (users, events)) * 1000
        gaps += (
            random.lognormal(10.0, 1.0, (users, events))
            * 1000
            * (random.random((users, events)) < _BREAK_SHARE)
        )
        records["timestamp_ms"] = (_START_MS + np.cumsum(gaps, axis=1)).astype(np.int64).ravel()
        watched = records["event_type"] == WATCH
        seconds = random.lognormal(3.0, 0.8, total)
        ratio = np.minimum(random.gamma(2.0, 0.4, total), 5.0)
        records["watch_seconds"] = np.where(watched, seconds * ratio, 0.0)
        records["watch_ratio"] = np.where(watched, ratio, 0.0)
        records["video_seconds"] = np.where(watched, seconds, 0.0)
        return [
            self._user(records[first : first + events], indices[first : first + events])
            for first in range(0, total, events)
        ]

    def _user(self, records: npt.NDArray[np.void], indices: npt.NDArray[np.int64]) -> SyntheticUser:
        names = self._names
        return SyntheticUser(
            f"user-{self._seed}-{next(self._numbers)}",
            records.tobytes(),
            b"".join([names[index] for index in indices.tolist()]),
            np.cumsum(records["video_id_bytes"], dtype=np.int64).tolist(),
            indices,
        )


def requests_of(users: Sequence[SyntheticUser], events: int) -> list[ListRequest]:
    """The requests of all of them after so many events each."""
    return [user.request(events) for user in users]
