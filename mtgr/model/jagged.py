"""Sequences of different lengths joined into one tensor, so that no layer computes a token that is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.config import ModelConfig

_MAX_SCORES: Final = 1 << 25  # of one forward: 128 MiB of float32
_MAX_PADDING: Final = 1.25  # how much larger than its scores the square of a group may be
_SMALL_GROUP: Final = 1 << 14  # below so many scores, padding costs less than the calls of another group


@dataclass(frozen=True, slots=True)
class Group:
    """Like-long sequences that attention computes together, padded on the right.

    places: (b, L) int64, where in the joined tensor each token stands, a sequence's last token repeated where it
    is padded; inside: flat positions in (b * L) that are no padding, None where all are; rows: where in the
    joined tensor these stand.
    """

    places: Tensor
    inside: Tensor | None
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """How joined sequences are to be taken apart.

    lengths: tokens of each sequence; positions: (total,) int64, of each token in its sequence; last: (sequences,)
    int64, where the last token of each stands.
    """

    lengths: npt.NDArray[np.int64]
    positions: Tensor
    last: Tensor
    groups: list[Group]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64], device: torch.device | None = None) -> Layout:
        """The layout of sequences of these lengths, one token or more each."""

        def tensor(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        ends = np.cumsum(lengths)
        starts = ends - lengths
        positions = np.arange(ends[-1] if len(ends) else 0) - np.repeat(starts, lengths)
        groups = []
        for members in _pack(lengths):
            longest = int(lengths[members].max())
            steps = np.arange(longest)
            inside = steps < lengths[members][:, None]  # (b, L)
            places = starts[members][:, None] + np.minimum(steps, lengths[members][:, None] - 1)
            groups.append(
                Group(
                    places=tensor(places),
                    inside=None if inside.all() else tensor(np.flatnonzero(inside)),
                    rows=tensor(places[inside]),
                )
            )
        return cls(lengths, tensor(positions), tensor(ends - 1), groups)

    @property
    def padded_tokens(self) -> int:
        """Tokens there would be if every sequence were padded to the longest."""
        return int(len(self.lengths) * self.lengths.max()) if len(self.lengths) else 0


def _pack(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Sequences in order of length, cut where a group would be too uneven."""
    order = np.argsort(lengths, kind="stable")
    begin, scores = 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        square = length * length
        padded = square * (place + 1 - begin)
        if place > begin and padded > _MAX_PADDING * (scores + square) and padded > _SMALL_GROUP:
            yield order[begin:place]
            begin, scores = place, 0
        scores += square
    if len(order):
        yield order[begin:]


def length_batches(lengths: Sequence[int], config: ModelConfig) -> Iterator[list[int]]:
    """Numbers of sequences to run together: the like-long, in bounded memory.

    A batch's attention scores of one layer, and its logits, stay below a fixed size each.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        scores = max(config.n_heads * lengths[number] ** 2, config.n_slots)
        if batch and (len(batch) + 1) * scores > _MAX_SCORES:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
