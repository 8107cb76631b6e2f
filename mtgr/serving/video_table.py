"""Where each video of a catalog stands, for compiled functions: a hash table over the UTF-8 of its ids.

It knows what `mtgr.catalog.Catalog` knows and no more: an id that is not in it is left to the catalog. Entries are
64-bit numbers, a part of the id's hash above the video's index, so that an id is compared with next to no other one.
"""

# numba gives functions their types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mtgr.kernels import simd
from mtgr.kernels.simd import load_long
from mtgr.serving.compiled import compile_now, inlined

_EMPTY: Final = -1
_WORD: Final = 8  # bytes that are hashed at once
_FACTOR: Final = -0x61C8864680B583EB  # odd, of 64 bits, as many ones as zeros
_TAG: Final = 0x7FFFFFFF  # what an entry keeps of a hash


class VideoTable:
    """The videos of a catalog by the bytes of their ids; it grows as the catalog does."""

    def __init__(self, room: int) -> None:
        """Without videos, with room for so many."""
        self.slots: Final = np.full(
            1 << max(3, (2 * room).bit_length()), _EMPTY, np.int64
        )  # half full at most
        self.ids: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        """The ids, joined, and room for more of them."""
        self.ends: Final = np.zeros(room + 1, np.int64)
        """Where in `ids` that of each video ends, behind a first 0."""
        self.size = 0

    def extend(self, video_ids: Sequence[str]) -> None:
        """Add the videos that come next in the catalog."""
        encoded = [video_id.encode() for video_id in video_ids]
        first, last = self.size, self.size + len(encoded)
        begin = int(self.ends[first])
        self.ends[first + 1 : last + 1] = begin + np.cumsum([len(one) for one in encoded], dtype=np.int64)
        end = int(self.ends[last])
        if end > len(self.ids):
            self.ids = np.concatenate([self.ids[:begin], np.zeros(2 * end - begin, np.uint8)])
        self.ids[begin:end] = np.frombuffer(b"".join(encoded), np.uint8)
        _insert()(self.slots, self.ids, self.ends, first, last)
        self.size = last


@inlined
def find(slots, ids, ends, text, begin, length):
    """The index of the video whose id is so many bytes of `text`, or -1; the rest is as in a `VideoTable`."""
    mask = len(slots) - 1
    hashed = _hash(text, begin, length)
    tag = (hashed >> 32) & _TAG
    place = hashed & mask
    while slots[place] != _EMPTY:
        if slots[place] >> 32 == tag:
            index = slots[place] & 0xFFFFFFFF
            known = ends[index]
            if ends[index + 1] - known == length and _equal(ids, known, text, begin, length):
                return index
        place = (place + 1) & mask
    return -1


def _insert_entry(sources: str) -> Callable[..., Any]:
    def insert(slots, ids, ends, first, last):
        sources  # noqa: B018
        mask = len(slots) - 1
        for index in range(first, last):
            hashed = _hash(ids, ends[index], ends[index + 1] - ends[index])
            place = hashed & mask
            while slots[place] != _EMPTY:
                place = (place + 1) & mask
            slots[place] = ((hashed >> 32) & _TAG) << 32 | index

    return insert


@functools.cache
def _insert() -> Any:
    def use(insert: Any) -> None:
        insert(np.full(8, _EMPTY), np.zeros(8, np.uint8), np.zeros(2, np.int64), 0, 0)

    return compile_now(_insert_entry, [simd], use)


@inlined
def _hash(text, begin, length):
    """64 bits of which the lower ones choose a slot."""
    hashed = length * _FACTOR
    if length < _WORD:
        return _mixed(hashed ^ _short(text, begin, length))
    last = begin + length - _WORD
    for place in range(begin, last, _WORD):
        hashed = _mixed(hashed ^ load_long(text.ctypes.data + place))
    return _mixed(hashed ^ load_long(text.ctypes.data + last))


@inlined
def _mixed(number):
    product = number * _FACTOR
    return product ^ (product >> 29)


@inlined
def _equal(one, begin, other, other_begin, length):
    if length < _WORD:
        return _short(one, begin, length) == _short(other, other_begin, length)
    last = length - _WORD
    for offset in range(0, last, _WORD):
        if load_long(one.ctypes.data + begin + offset) != load_long(other.ctypes.data + other_begin + offset):
            return False
    return load_long(one.ctypes.data + begin + last) == load_long(other.ctypes.data + other_begin + last)


@inlined
def _short(text, begin, length):
    """Less than a word as a number: what follows these bytes may not be there to read."""
    number = 0
    for place in range(begin, begin + length):
        number = number << 8 | text[place]
    return number
