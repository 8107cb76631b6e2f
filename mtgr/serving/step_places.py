"""Where the new tokens of a step lie in the KV cache, in one compiled pass over them."""

# numba gives functions their types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mtgr.serving.compiled import compile_now

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]


def place_tokens(
    cached: Ints, new: Ints, blocks: Ints, block_size: int, positions: Longs, slots: Longs
) -> None:
    """Write the position in its sequence and the slot in the cache of each new token.

    cached, new: (requests,) tokens that each request has and gets; blocks: (requests, n) its cache blocks; positions,
    slots: (tokens,), written; a slot is block * block_size + offset.
    """
    _place()(cached, new, blocks, block_size, positions, slots)


def warm_up() -> None:
    """Compile it, or load it from the disk: no step should wait for that."""
    _place()


@functools.cache
def _place() -> Any:
    def use(place: Any) -> None:
        # arrays that a message holds are read-only, others not: to numba they differ
        for writeable in (False, True):
            one = np.zeros(1, np.int32)
            blocks = np.zeros((1, 1), np.int32)
            one.flags.writeable = blocks.flags.writeable = writeable
            place(one, one, blocks, 1, np.zeros(1, np.int64), np.zeros(1, np.int64))

    return compile_now(_place_entry, [], use)


def _place_entry(sources: str) -> Callable[..., Any]:
    def place(cached, new, blocks, block_size, positions, slots):
        sources  # noqa: B018
        token = 0
        for request in range(len(new)):
            position = np.int64(cached[request])
            block, offset = position // block_size, position % block_size
            for _ in range(new[request]):
                positions[token] = position
                slots[token] = np.int64(blocks[request, block]) * block_size + offset
                token += 1
                position += 1
                offset += 1
                if offset == block_size:
                    block, offset = block + 1, 0

    return place
