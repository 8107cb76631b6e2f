"""How a gradient moves the weights: AdamW, its learning rate over time, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from mtgr.model.bias import RelativeBias
from mtgr.model.norm import GroupLayerNorm
from mtgr.training.options import TrainingOptions

_BETAS: Final = (0.9, 0.98)  # the gradients of rare videos' embeddings are forgotten sooner than by 0.999
_WARM_UP_SHARE: Final = 0.1  # of the steps, where these are few
_FINAL_SHARE: Final = 0.01  # of the peak learning rate, at the end
_DECAY_WARM_UP: Final = 10  # steps: an average over t steps looks back over a tenth of them at most


def adamw(model: nn.Module, options: TrainingOptions, rate: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019), its decay on matrices and embeddings alone."""
    spared = _spared(model)
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if name not in spared],
            "weight_decay": options.weight_decay,
        },
        {"params": [p for name, p in model.named_parameters() if name in spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=rate, betas=_BETAS, fused=True
    )


def _spared(model: nn.Module) -> set[str]:
    """Parameters without weight decay: those of norms and relative biases, all vectors, and positions."""
    spared = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    for prefix, module in model.named_modules():
        if isinstance(module, GroupLayerNorm | nn.LayerNorm | RelativeBias) or prefix.endswith("positions"):
            spared |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
    return spared


def learning_rate(options: TrainingOptions, peak: float, step: int, steps: int, done: float) -> float:
    """The rate of a step, from 0, of about so many: a linear warm-up, then a fall to near 0 at the end.

    done: share of the training that lies behind, by steps or by time.
    """
    warm_up = min(options.warm_up_steps, _WARM_UP_SHARE * steps)
    rise = min(1.0, (step + 1) / max(1.0, warm_up))
    left = max(0.0, 1.0 - done)
    if options.schedule == "constant":
        fall = 1.0
    elif options.schedule == "cosine":
        fall = max(_FINAL_SHARE, 0.5 - 0.5 * math.cos(math.pi * left))
    else:
        fall = max(_FINAL_SHARE, left)
    return peak * rise * fall


class AveragedWeights:
    """An exponential moving average of a model's parameters (Polyak & Juditsky 1992).

    average(t) = d(t) * average(t - 1) + (1 - d(t)) * parameters(t), with d(t) = min(decay, t / (t + 10)): the decay
    itself warms up, as in TensorFlow's ExponentialMovingAverage, so that the first, random weights do not linger.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """The model lies on its device already, and keeps its parameters' tensors."""
        self._decay: Final = decay
        parameters = dict(model.named_parameters())
        self._names: Final = list(parameters)
        self._parameters: Final = [parameter.detach() for parameter in parameters.values()]
        self._averages: Final = [parameter.clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step, from 1."""
        decay = min(self._decay, step / (step + _DECAY_WARM_UP))
        torch._foreach_lerp_(self._averages, self._parameters, 1.0 - decay)

    def values(self) -> dict[str, Tensor]:
        """The averages themselves, by the parameters' names."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved averages; from the parameters as they are now where none were saved."""
        found = [values[name] for name in self._names] if values else self._parameters
        torch._foreach_copy_(self._averages, found)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages for its weights meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        held = [parameter.clone() for parameter in self._parameters]
        torch._foreach_copy_(self._parameters, self._averages)
        torch._foreach_copy_(self._averages, held)
