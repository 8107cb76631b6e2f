"""What the kernels over the paged KV cache share: a step's work, cut into tiles once for all layers, and the biases.

The cache of a layer is (blocks, heads, block_size, head_size + d_v): head-major blocks, in each row a key and its
value. Where attention has a bias by time, the last lanes of queries and keys are the times of their tokens, as the
bytes of `mtgr.features`: so a time lies in the cache with its key. Any number format but FP8 holds a byte exactly as
a number; an FP8 cache holds it as a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PADDING: Final = -1
"""Request of a tile, and slot of a token, that there is not: a captured graph has as many as it was captured with."""

TIME_LANES: Final = 4
"""Lanes of a time, as of `mtgr.config`: that kernels read them as one 32-bit number is why they have a name here."""


@dataclass(frozen=True, slots=True)
class BiasTables:
    """What a layer adds to its scores; either may be there alone.

    by_position: (heads, distances), of which the last stands for all further ones; by_time: (heads, TIME_BUCKETS).
    """

    by_position: Tensor | None
    by_time: Tensor | None


@dataclass(frozen=True, slots=True)
class PagedStep:
    """The new tokens of a step and where what they attend to lies, all int32 on the cache's device.

    query_starts: (requests + 1,) offsets of each request's new tokens in the step; lengths: (requests,) tokens of each
    request, the new ones included; block_table: (requests, blocks) cache blocks, anything past a request's own; tiles:
    (tiles, 2) a request and the first query of the tile among its new tokens, or PADDING, behind all that is none. A
    tile has at most `tile_queries` queries, consecutive ones of one request, so that the work of a kernel follows the
    tokens and not the longest request.
    """

    query_starts: Tensor
    lengths: Tensor
    block_table: Tensor
    tiles: Tensor
    tile_queries: int


def plan_step(
    query_starts: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int32],
    block_table: Tensor,
    *,
    tile_queries: int,
    device: torch.device | None = None,
) -> PagedStep:
    """Cut a step's queries into tiles, longest work first; shapes as in `PagedStep`."""
    tiles = cut_tiles(np.diff(query_starts), lengths, tile_queries)
    return PagedStep(
        query_starts=torch.from_numpy(query_starts).to(device),
        lengths=torch.from_numpy(lengths).to(device),
        block_table=block_table,
        tiles=torch.from_numpy(tiles).to(device),
        tile_queries=tile_queries,
    )


def cut_tiles(
    new_tokens: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], tile_queries: int
) -> npt.NDArray[np.int32]:
    """(tiles, 2) int32 of requests and first queries; the tile that sees most keys stands first.

    What is long is begun early, so that no core or multiprocessor is left with it at the end.
    """
    tiles_of = -(-new_tokens // tile_queries)
    request = np.repeat(np.arange(len(new_tokens), dtype=np.int32), tiles_of)
    ordinal = np.arange(len(request)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
    first = ordinal * tile_queries
    last_seen = (lengths - new_tokens)[request] + np.minimum(first + tile_queries, new_tokens[request])
    order = np.argsort(-last_seen, kind="stable")
    return np.stack([request[order], first[order].astype(np.int32)], axis=1)


def tile_for(most_new: int) -> int:
    """Queries of a tile on a GPU, where no request of a step has more new tokens than `most_new`."""
    if most_new == 1:
        return 1
    return 16 if most_new <= 16 else 64
