"""Each tensor-parallel rank serves the biases of its own heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from serving import MODELS
from torch import Tensor

from mtgr.config import ModelConfig
from mtgr.kernels.paged import BiasTables
from mtgr.model.bias import RelativeBias
from mtgr.presets import PRESETS

pytestmark = pytest.mark.vllm

CONFIG = PRESETS["tiny"].replace(n_heads=4, **MODELS["everything"])


def tables_of(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig, weights: dict[str, Tensor], rank: int, ranks: int
) -> BiasTables:
    """What a rank has once the checkpoint's tensors are loaded."""
    from mtgr.serving import bias

    monkeypatch.setattr(bias, "get_tensor_model_parallel_world_size", lambda: ranks)
    monkeypatch.setattr(bias, "get_tensor_model_parallel_rank", lambda: rank)
    served = bias.ServedBias(config)
    parameters = dict(served.named_parameters())
    assert set(parameters) == set(weights)
    for name, tensor in weights.items():
        parameter: Any = parameters[name]
        parameter.weight_loader(parameter, tensor)
    return served.tables


def test_the_ranks_have_the_heads_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they have all of them, each once."""
    weights = RelativeBias(CONFIG).state_dict()
    ranks = [tables_of(monkeypatch, CONFIG, weights, rank, 2) for rank in range(2)]
    for name, parts in (
        ("by_position.weight", [tables.by_position for tables in ranks]),
        ("by_time.weight", [tables.by_time for tables in ranks]),
    ):
        there = [part for part in parts if part is not None]
        assert len(there) == 2
        torch.testing.assert_close(torch.cat(there).T, weights[name], rtol=0, atol=0)


def test_a_layer_has_the_biases_that_its_config_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the other one."""
    config = CONFIG.replace(time_bias=False)
    tables = tables_of(monkeypatch, config, RelativeBias(config).state_dict(), 0, 1)
    assert tables.by_time is None
    assert tables.by_position is not None
    assert tables.by_position.shape == (4, config.max_length)
