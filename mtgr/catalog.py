"""The catalog: external video ids to item indices and back, with hashed buckets for unknown videos.

Indices are 0 to size - 1 for the videos known when the model was trained, then a fixed number of spare places for
videos that join while the model is served, then the buckets that all other videos share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from mtgr.errors import InputError
from schemas.bounds import Identifier


class _CatalogFile(Struct, frozen=True, forbid_unknown_fields=True):
    video_ids: list[Identifier]


_decoder: Final = msgspec.json.Decoder(_CatalogFile)


class Catalog:
    """Videos a model can recommend, each with an index of its own, and the buckets of all others after them."""

    def __init__(self, video_ids: Iterable[str], unknown_buckets: int, spare_items: int = 0) -> None:
        """Number the videos in the order given; ValueError if one stands there twice or there is none."""
        self._video_ids: Final = list(video_ids)
        self.unknown_buckets: Final = unknown_buckets
        self.spare_items: Final = spare_items
        self.trained: Final = len(self._video_ids)
        """Videos known when the model was trained; those after them have joined since."""
        self._index_of: Final = {video_id: index for index, video_id in enumerate(self._video_ids)}
        if not self._video_ids:
            raise ValueError("a catalog needs at least one video")
        if unknown_buckets < 1:
            raise ValueError(f"unknown_buckets is {unknown_buckets}, where at least 1 is needed")
        if len(self._index_of) != len(self._video_ids):
            for index, video_id in enumerate(self._video_ids):
                if self._index_of[video_id] != index:
                    raise ValueError(f"video id {video_id!r} stands there twice")

    @property
    def video_ids(self) -> Sequence[str]:
        """The videos in the order of their indices."""
        return self._video_ids

    def add(self, video_id: str) -> int | None:
        """Give a new video a spare place and return its index; None if none is left. ValueError if it is known."""
        if video_id in self._index_of:
            raise ValueError(f"video id {video_id!r} is in the catalog already")
        if len(self._video_ids) == self.trained + self.spare_items:
            return None
        index = len(self._video_ids)
        self._video_ids.append(video_id)
        self._index_of[video_id] = index
        return index

    def __len__(self) -> int:
        return len(self._video_ids)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._index_of

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Catalog):
            return NotImplemented
        return (self._video_ids, self.unknown_buckets, self.spare_items) == (
            other._video_ids,
            other.unknown_buckets,
            other.spare_items,
        )

    __hash__ = None  # type: ignore[assignment]

    def index(self, video_id: str) -> int:
        """The index of a video: its own if known, else a bucket that every run and machine agrees on."""
        found = self._index_of.get(video_id)
        return self.bucket(video_id) if found is None else found

    def bucket(self, video_id: str) -> int:
        """The index of the bucket that stands for a video where it is unknown."""
        first = self.trained + self.spare_items
        return first + xxh3_64_intdigest(video_id.encode()) % self.unknown_buckets

    def indices(self, video_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The index of each video, as `index` gives it: (n,) int64."""
        found = np.array(list(map(self._index_of.get, video_ids, itertools.repeat(-1))), np.int64)
        for place in np.flatnonzero(found < 0).tolist():
            found[place] = self.bucket(video_ids[place])
        return found

    def video_id(self, index: int) -> str:
        """The video of an index; IndexError for a bucket or a number outside the catalog."""
        if not 0 <= index < len(self._video_ids):
            raise IndexError(
                f"item index {index} is no video of the catalog, which has {len(self._video_ids)}"
            )
        return self._video_ids[index]

    def to_json(self) -> bytes:
        """The catalog's file: the videos that the model was trained with."""
        return msgspec.json.encode(_CatalogFile(self._video_ids[: self.trained]))

    @classmethod
    def from_json(
        cls, data: bytes, unknown_buckets: int, spare_items: int = 0, source: str = "catalog"
    ) -> Catalog:
        """Read what `to_json` wrote; InputError names the source and what is wrong."""
        try:
            return cls(_decoder.decode(data).video_ids, unknown_buckets, spare_items)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{source}: {error}") from None
