"""SiLU attention over the paged KV cache on a CPU; `mtgr.kernels.cpu_tiles` says how it is computed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.kernels import cpu_rows, cpu_tiles, simd, simd_math, time_cells
from mtgr.kernels.cpu_rows import BFLOAT16, FLOAT16, FLOAT32
from mtgr.kernels.cpu_threads import (
    TOKENS_AT_ONCE,
    Attending,
    Storing,
    attend_entry,
    scratch_bytes,
    store_entry,
)
from mtgr.kernels.openmp import run_on_threads
from mtgr.kernels.paged import TIME_LANES, BiasTables, PagedStep
from mtgr.kernels.simd import LANES
from mtgr.kernels.simd_math import TIME_CELLS

TILE_QUERIES: Final = 64
"""Queries of a tile: longer ones crowd a core's memory, shorter ones read the cache more often."""

_FORMATS: Final = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_SOURCES: Final = hashlib.sha256(
    b"".join(
        Path(str(module.__file__)).read_bytes()
        for module in (cpu_rows, cpu_tiles, simd, simd_math, time_cells)
    )
).hexdigest()  # what numba compiles beside `cpu_threads`, as it was imported
_ALIGNMENT: Final = 64  # bytes, of a vector at most
_TILES_OF_A_THREAD: Final = 4  # with fewer, some threads would wait long for the last one


def warm_up() -> None:
    """Compile the kernels, some seconds, or load them from numba's cache on the disk, which no step should wait for."""
    _attend()
    _store()


def attend(
    query: Tensor,
    kv_cache: Tensor,
    output: Tensor,
    step: PagedStep,
    *,
    scale: float,
    normalizer: float,
    bias: BiasTables | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Write silu(Q K^T * scale + bias) * normalizer, causally masked, times V, for the queries of the step's tiles.

    Arguments as of `mtgr.kernels.paged_reference.attend`; the cache is float32, bfloat16 or float16, and sums are
    float32. ValueError for a cache of any other format.
    """
    tiles = len(step.tiles)
    if not tiles:
        return
    cache_format = _format(kv_cache)
    by_position, by_time = (None, None) if bias is None else (bias.by_position, bias.by_time)
    by_position, by_time = _floats(by_position), _floats(by_time)
    _, heads, block_size, width = kv_cache.shape
    d_v = width - query.shape[-1]
    d_qk = query.shape[-1] - (0 if by_time is None else TIME_LANES)
    queries = query.float() if query.stride(-1) == 1 else query.float().contiguous()
    mixed = output if output.dtype == torch.float32 else torch.empty_like(output, dtype=torch.float32)
    starts, lengths, tile_list = (part.contiguous() for part in (step.query_starts, step.lengths, step.tiles))
    columns = -(-step.tile_queries // LANES)
    longest = -(-step.block_table.shape[1] * block_size // LANES) * LANES
    threads = torch.get_num_threads()
    # buckets of time are the same for all heads, which therefore stay together where there is enough to share
    together = by_time is not None and tiles >= _TILES_OF_A_THREAD * threads
    groups = 1 if together else heads
    threads = min(threads, tiles * groups)
    part = scratch_bytes(d_qk, d_v, columns, longest, timed=by_time is not None)
    part = -(-part // _ALIGNMENT) * _ALIGNMENT
    scratch = torch.empty(threads * part + _ALIGNMENT, dtype=torch.uint8)
    turns, size = np.zeros(2, np.int64), kv_cache.element_size()
    works = np.zeros(1, Attending)
    work = works[0]
    work["query"], work["query_token"], work["query_head"] = _address(queries)
    work["output"], work["output_token"], work["output_head"] = _address(mixed)
    work["cache"], work["cache_block"], work["cache_head"] = _address(kv_cache)
    work["cache_row"] = kv_cache.stride(2) * size
    work["block_table"], work["block_table_row"] = step.block_table.data_ptr(), 4 * step.block_table.stride(0)
    work["query_starts"], work["lengths"] = starts.data_ptr(), lengths.data_ptr()
    work["tiles"], work["tile_count"], work["tile_queries"] = tile_list.data_ptr(), tiles, step.tile_queries
    if by_position is not None:
        work["by_position"], work["distances"] = by_position.data_ptr(), by_position.shape[1]
    if by_time is not None:
        work["by_time"], work["cells"] = by_time.data_ptr(), _cells().ctypes.data
    work["turns"] = turns.ctypes.data
    work["scratch"] = -(-scratch.data_ptr() // _ALIGNMENT) * _ALIGNMENT
    work["scratch_part"] = part
    work["format"], work["number"], work["block_size"] = cache_format, size, block_size
    work["heads"], work["head_groups"], work["d_qk"], work["d_v"] = heads, groups, d_qk, d_v
    work["columns"], work["longest"] = columns, longest
    work["scale"], work["normalizer"] = scale * k_scale, normalizer * v_scale
    run_on_threads(_attend(), works.ctypes.data, threads)
    if mixed is not output:
        output.copy_(mixed)


def store(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slots: Tensor,
    *,
    timed: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Write new keys (tokens, heads, head_size) and values (tokens, heads, d_v) to their slots of the cache.

    slots: (tokens,) block * block_size + offset, or PADDING for a token that is kept nowhere. The rest is of FP8
    caches, and what is no number of theirs has no scale. ValueError for a cache of another format than `attend` takes.
    """
    tokens = min(len(slots), len(key))
    if not tokens:
        return
    _format(kv_cache)
    _, heads, block_size, _ = kv_cache.shape
    key, value = (
        part if part.stride(-1) == 1 else part.contiguous()
        for part in (key.to(kv_cache.dtype), value.to(kv_cache.dtype))
    )
    slots = slots.to(torch.int64).contiguous()
    turns, size = np.zeros(1, np.int64), kv_cache.element_size()
    works = np.zeros(1, Storing)
    work = works[0]
    work["key"], work["key_token"], work["key_head"] = _address(key)
    work["value"], work["value_token"], work["value_head"] = _address(value)
    work["key_bytes"], work["value_bytes"] = key.shape[-1] * size, value.shape[-1] * size
    work["cache"], work["cache_block"], work["cache_head"] = _address(kv_cache)
    work["cache_row"] = kv_cache.stride(2) * size
    work["slots"], work["turns"] = slots.data_ptr(), turns.ctypes.data
    work["tokens"], work["heads"], work["block_size"] = tokens, heads, block_size
    run_on_threads(_store(), works.ctypes.data, min(torch.get_num_threads(), -(-tokens // TOKENS_AT_ONCE)))


def _format(kv_cache: Tensor) -> int:
    try:
        return _FORMATS[kv_cache.dtype]
    except KeyError:
        wanted = ", ".join(str(dtype) for dtype in _FORMATS)
        raise ValueError(f"kv_cache is {kv_cache.dtype}, where one of {wanted} is wanted on a CPU") from None


def _floats(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.float().contiguous()


def _address(tensor: Tensor) -> tuple[int, int, int]:
    """Of the first number, and how many bytes it is to the next of the first and of the second dimension."""
    size = tensor.element_size()
    return tensor.data_ptr(), tensor.stride(0) * size, tensor.stride(1) * size


@functools.cache
def _attend() -> int:
    return _compiled(attend_entry, Attending)


@functools.cache
def _store() -> int:
    return _compiled(store_entry, Storing)


def _compiled(entry: Callable[[str], Callable[[Any], None]], work: npt.DTypeLike) -> int:
    """The address of a thread's function."""
    function = entry(_SOURCES)
    signature = numba.types.void(numba.types.CPointer(numba.from_dtype(work)))
    try:
        compiled = numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # there is no folder that numba can write to
        compiled = numba.cfunc(signature, error_model="numpy")(function)
    kept = _kept.setdefault(function.__name__, compiled)
    return int(kept.address)


_kept: Final[dict[str, Any]] = {}  # compiled code lives as long as what numba made of it


@functools.cache
def _cells() -> npt.NDArray[np.int32]:
    """The bucket of each cell and the threshold from which on it is the next, (2, TIME_CELLS)."""
    table = time_cells.cell_table()[:TIME_CELLS]
    return np.stack([table >> 32, table & 0xFFFFFFFF]).astype(np.int32)
