"""What a training tells and asks on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.training.run import RunDirectory
from mtgr.training.validation import Accuracy

Ending = Literal["epochs", "patience", "time"]


class TrainingStopped(Exception):
    """The training was asked to stop, and its state is saved where the message says, or nowhere."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after a step.

    done: share of the steps, or of the time where that is more; loss: running mean over some 50 steps; best: what
    the weights kept so far reach.
    """

    step: int
    epoch: float
    done: float
    loss: float
    tokens_per_second: float
    seconds_left: float
    best: Accuracy | None


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a training tells and asks on its way; all of it may be left out.

    on_step: after each step, or after some on a GPU. stop: asked between two steps, True to save and stop. keep:
    given config, catalog and weights when the model is better than before, or when a state is saved without
    there being evaluations; returns where they are kept. run, resume: where figures and states go, and whether to
    go on from the state there.
    """

    on_step: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[], bool] = lambda: False
    keep: Callable[[ModelConfig, Catalog, dict[str, Tensor]], str | None] = lambda *_: None
    run: RunDirectory | None = None
    resume: bool = False
