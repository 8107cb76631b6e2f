"""The figures of steps, read from the device some at a time, and summed up for the lines of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LOOK_EVERY: Final = (
    16  # steps between two looks on a device that computes on its own: each look waits for it
)


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Of one step: its two losses, the norm of the gradient, and which windows it learnt."""

    step: int
    loss: float
    ranking_loss: float
    gradient_norm: float
    windows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Means:
    """Over the steps since the last time."""

    loss: float
    ranking_loss: float
    gradient_norm: float
    tokens_per_second: float


class Figures:
    """Holds what steps leave on the device until it is looked at."""

    def __init__(self, device: torch.device) -> None:
        self._every: Final = 1 if device.type == "cpu" else _LOOK_EVERY
        self._windows: Final[list[npt.NDArray[np.int64]]] = []
        self._values: Final[list[Tensor]] = []
        self._sums = np.zeros(3)
        self._steps = 0
        self._tokens = 0
        self._since = 0.0

    def add(self, windows: npt.NDArray[np.int64], tokens: int, *values: Tensor) -> None:
        """Take in a step: its windows and tokens, and loss, ranking loss and gradient norm where they are."""
        self._windows.append(windows)
        self._values.append(torch.stack([value.detach().float() for value in values]))
        self._tokens += tokens

    @property
    def due(self) -> bool:
        """Whether it is time to look."""
        return len(self._values) >= self._every

    def look(self, last_step: int) -> Iterator[StepFigures]:
        """The steps since the last look, of which the last is told; on a GPU it is waited for."""
        if not self._values:
            return
        values = torch.stack(self._values).double().cpu().numpy()
        windows = list(self._windows)
        self._values.clear()
        self._windows.clear()
        self._sums += values.sum(0)
        self._steps += len(values)
        first = last_step - len(values) + 1
        for place, (loss, ranking_loss, norm) in enumerate(values.tolist()):
            yield StepFigures(first + place, loss, ranking_loss, norm, windows[place])

    def seconds_since(self, now: float) -> float:
        """How long ago the last means were taken."""
        return now - self._since

    def means(self, now: float) -> Means | None:
        """Of what was looked at since the last time; None where there was nothing. now: seconds of the training."""
        found = None
        if self._steps:
            loss, ranking_loss, norm = (self._sums / self._steps).tolist()
            found = Means(loss, ranking_loss, norm, self._tokens / max(now - self._since, 1e-9))
        self._sums[:] = 0.0
        self._steps = self._tokens = 0
        self._since = now
        return found
