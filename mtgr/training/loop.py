"""The steps of a training: batch, loss, gradient, update, until the epochs are through or the time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from mtgr.errors import InputError
from mtgr.model.mtgr import MTGR
from mtgr.training.batches import Batch, Batcher
from mtgr.training.loss import SampledSoftmax
from mtgr.training.options import TrainingOptions

_WARM_UP_STEPS: Final = 100
_WARM_UP_SHARE: Final = 0.1  # of the steps, where these are few
_FINAL_SHARE: Final = 0.01  # of the peak learning rate, at the end
_GRADIENT_NORM: Final = 1.0
_LOSS_MEMORY: Final = 0.98  # of the running mean shown


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after a step.

    done: share of the steps, or of the time where that is more; loss: running mean over some 50 steps.
    """

    step: int
    done: float
    loss: float
    tokens_per_second: float
    seconds_left: float


class TrainingLoop:
    """Trains one model in place."""

    def __init__(
        self,
        model: MTGR,
        batcher: Batcher,
        target_counts: Tensor,
        options: TrainingOptions,
        device: torch.device,
    ) -> None:
        """target_counts: (n_items,) how often each video is to be predicted; the model lies on the device."""
        self.step = 0
        self.epochs = 0.0
        self._model = model
        self._batcher = batcher
        self._device = device
        self._n_epochs = options.epochs
        self._loss = SampledSoftmax(target_counts, options.negatives)
        self._draws = torch.Generator().manual_seed(options.seed)
        self._rate = options.peak_rate(model.config.d_model)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=self._rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def run(self, max_seconds: float, on_step: Callable[[Progress], None] | None = None) -> None:
        """Train for all epochs, but no longer than so many seconds (one step at least).

        Raises InputError if the loss is no longer a number.
        """
        began = time.monotonic()
        tokens = 0
        mean = math.nan
        for epoch in range(self._n_epochs):
            plan = self._batcher.plan()
            steps = self.step + len(plan) * (self._n_epochs - epoch)
            for place, windows in enumerate(plan):
                batch = self._batcher.batch(windows, self._device)
                done = max(self.step / steps, (time.monotonic() - began) / max_seconds)
                loss = self._take_step(batch, self._rate_at(done, steps))
                tokens += len(batch.token_ids)
                mean = loss if self.step == 1 else _LOSS_MEMORY * mean + (1 - _LOSS_MEMORY) * loss
                self.epochs = epoch + (place + 1) / len(plan)
                spent = time.monotonic() - began
                done = min(1.0, max(self.step / steps, spent / max_seconds))
                if on_step is not None:
                    on_step(Progress(self.step, done, mean, tokens / spent, spent / done - spent))
                if spent >= max_seconds:
                    return

    def _rate_at(self, done: float, steps: int) -> float:
        """Linear warm-up, then a linear fall to the end, be that the last step or the time limit."""
        warm_up = min(_WARM_UP_STEPS, max(1.0, _WARM_UP_SHARE * steps))
        return self._rate * min(1.0, (self.step + 1) / warm_up) * max(_FINAL_SHARE, 1 - done)

    def _take_step(self, batch: Batch, rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(self._model, batch, self._draws)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._model.parameters(), _GRADIENT_NORM)
        self._optimizer.step()
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(
                f"training diverged: the loss is {value} at step {self.step} with learning rate {self._rate:g}; "
                "a smaller one would do"
            )
        return value
