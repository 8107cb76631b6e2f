"""What the linears of a model are given: second moments of their inputs, over the events of a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.features import RowEncoder
from mtgr.history import History
from mtgr.model.jagged import Layout, length_batches
from mtgr.model.mtgr import MTGR


@dataclass(slots=True)
class Moments:
    """Of the inputs of one linear, float32.

    size: (in,) sum of |x|; product: sum of x x^T, (in, in), or (groups, group, group) of its diagonal blocks.
    """

    size: Tensor
    product: Tensor


class InputMoments:
    """Sums them up while a model runs: `with moments: model(...)`."""

    def __init__(self, model: MTGR, group_size: int) -> None:
        """Of all linears in the layers; of an MLP's second one, which no scale is searched for, by groups of inputs."""
        self.of: Final[dict[str, Moments]] = {}
        self.tokens = 0
        self._group_size: Final = group_size
        self._linears: Final = {
            name: module
            for name, module in model.named_modules()
            if name.startswith("layers.") and isinstance(module, nn.Linear)
        }
        self._hooks: list[Any] = []

    def __enter__(self) -> InputMoments:
        for name, linear in self._linears.items():

            def add(_linear: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                self._add(name, inputs[0].detach().float())

            self._hooks.append(linear.register_forward_pre_hook(add))
        return self

    def __exit__(self, *_error: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _add(self, name: str, x: Tensor) -> None:
        if name.endswith(".mlp_down"):
            blocks = x.view(len(x), -1, self._group_size).transpose(0, 1)  # (groups, tokens, group)
            product = blocks.transpose(1, 2) @ blocks
        else:
            product = x.T @ x
        size = x.abs().sum(0)
        if name in self.of:
            self.of[name].size += size
            self.of[name].product += product
        else:
            self.of[name] = Moments(size, product)


@torch.inference_mode()
def input_moments(
    model: MTGR,
    catalog: Catalog,
    histories: Sequence[tuple[History, Mapping[str, Any]]],
    group_size: int,
) -> InputMoments:
    """Those of the model on these histories with their profiles, none longer than the config's capacity."""
    device = next(model.parameters()).device
    moments = InputMoments(model, group_size)
    encoder = RowEncoder(model.config, catalog)
    with moments:
        for batch in _batches([history for history, _ in histories], model.config):
            chosen = [histories[number] for number in batch]
            encoded = encoder.encode_batch([one for one, _ in chosen], [profile for _, profile in chosen])
            model(torch.from_numpy(encoded.rows).to(device), Layout.of(encoded.lengths, device))
            moments.tokens += int(np.sum(encoded.lengths))
    return moments


def _batches(histories: Sequence[History], config: ModelConfig) -> Iterator[list[int]]:
    return length_batches([1 + len(history) for history in histories], config)
