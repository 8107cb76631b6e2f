"""The catalog: external video ids to item indices and back, with hashed buckets for unknown videos."""

from __future__ import annotations

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
    """Videos a model can recommend, numbered 0 to size - 1, and the buckets of all others after them."""

    def __init__(self, video_ids: Iterable[str], unknown_buckets: int) -> None:
        """Number the videos in the order given; ValueError if one stands there twice or there is none."""
        self.video_ids: Final[tuple[str, ...]] = tuple(video_ids)
        self.unknown_buckets: Final = unknown_buckets
        self._index_of: Final = {video_id: index for index, video_id in enumerate(self.video_ids)}
        if not self.video_ids:
            raise ValueError("a catalog needs at least one video")
        if unknown_buckets < 1:
            raise ValueError(f"unknown_buckets is {unknown_buckets}, where at least 1 is needed")
        if len(self._index_of) != len(self.video_ids):
            for index, video_id in enumerate(self.video_ids):
                if self._index_of[video_id] != index:
                    raise ValueError(f"video id {video_id!r} stands there twice")

    def __len__(self) -> int:
        return len(self.video_ids)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._index_of

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Catalog):
            return NotImplemented
        return (self.video_ids, self.unknown_buckets) == (other.video_ids, other.unknown_buckets)

    __hash__ = None  # type: ignore[assignment]

    def index(self, video_id: str) -> int:
        """The index of a video: its own if known, else a bucket that every run and machine agrees on."""
        found = self._index_of.get(video_id)
        return self.bucket(video_id) if found is None else found

    def bucket(self, video_id: str) -> int:
        """The index of the bucket that stands for a video where it is unknown."""
        return len(self.video_ids) + xxh3_64_intdigest(video_id.encode()) % self.unknown_buckets

    def indices(self, video_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The index of each video, as `index` gives it: (n,) int64."""
        get = self._index_of.get
        found = np.fromiter((get(video_id, -1) for video_id in video_ids), np.int64, len(video_ids))
        for place in np.flatnonzero(found < 0).tolist():
            found[place] = self.bucket(video_ids[place])
        return found

    def video_id(self, index: int) -> str:
        """The video of an index; IndexError for a bucket or a number outside the catalog."""
        if not 0 <= index < len(self.video_ids):
            raise IndexError(
                f"item index {index} is no video of the catalog, which has {len(self.video_ids)}"
            )
        return self.video_ids[index]

    def to_json(self) -> bytes:
        """The catalog's file."""
        return msgspec.json.encode(_CatalogFile(list(self.video_ids)))

    @classmethod
    def from_json(cls, data: bytes, unknown_buckets: int, source: str = "catalog") -> Catalog:
        """Read what `to_json` wrote; InputError names the source and what is wrong."""
        try:
            return cls(_decoder.decode(data).video_ids, unknown_buckets)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{source}: {error}") from None
