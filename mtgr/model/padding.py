"""Sequences of different lengths in one tensor: which to put together, and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.config import ModelConfig

_MAX_SCORES: Final = 1 << 25  # of one forward: 128 MiB of float32


def length_batches(lengths: Sequence[int], config: ModelConfig) -> Iterator[list[int]]:
    """Numbers of sequences to run together: the like-long, so that little is padded, in bounded memory.

    A batch's attention scores of one layer, and its logits, stay below a fixed size each.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        scores = max(config.n_heads * lengths[number] ** 2, config.n_items)
        if batch and (len(batch) + 1) * scores > _MAX_SCORES:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def pad_rows(rows: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> Tensor:
    """Joined rows (total, lanes) of sequences of these lengths, padded on the right: (B, longest, lanes)."""
    padded = np.zeros((len(lengths), int(lengths.max()), rows.shape[1]), np.float32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = rows
    return torch.from_numpy(padded)
