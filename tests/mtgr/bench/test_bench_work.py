"""Floors, counted again by other means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtgr.bench.cases import Case
from mtgr.bench.llama import llama_config, llama_d_ff, llama_parameters
from mtgr.bench.records import Ceilings
from mtgr.bench.work import Work, batch_work, hstu_shape, layer_work
from mtgr.model.layer import HSTULayer
from mtgr.model.mtgr import parameter_counts
from mtgr.presets import PRESETS

CEILINGS = Ceilings("cuda", "bfloat16", bytes_per_second=4e12, operations_per_second=8e14)


@pytest.mark.parametrize("name", ["tiny", "small", "seed-high"])
def test_the_weights_of_a_shape_are_those_of_the_layers(name: str) -> None:
    """Every number of a linear layer is counted once, and nothing else is."""
    config = PRESETS[name]
    with torch.device("meta"):
        layer = HSTULayer(config)
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    assert hstu_shape(config, 2).layer_weights == sum(linear.weight.numel() for linear in linears)


@pytest.mark.parametrize("case", [Case(1, 3), Case(5, 7), Case(5, 7, cached=True)])
def test_operations_and_bytes_are_those_counted_token_by_token(case: Case) -> None:
    """Each new token goes through all layers and looks at all before it; the last one meets the catalog."""
    config = PRESETS["seed-high"]
    shape = hstu_shape(config, 2)
    attended = config.n_heads * (config.d_qk + config.d_v)
    operations = 0
    touched = 0
    for _ in range(case.users):
        for position in range(case.length):
            new = position >= case.length - case.new_tokens
            touched += config.n_layers * attended + (config.d_model if new else 0)
            if new:
                operations += config.n_layers * (2 * shape.layer_weights + 2 * attended * (position + 1))
        operations += 2 * config.n_items * config.d_model
    weights = config.n_layers * shape.layer_weights + config.n_items * config.d_model
    work = batch_work(shape, case)
    assert work.operations == operations
    assert work.bytes == 2 * (weights + touched)


def test_the_floor_is_the_larger_of_moving_and_computing() -> None:
    """A batch can be no faster than either of the two."""
    moving, computing = Work(8_000_000_000, 1), Work(1, 1_600_000_000_000)
    assert moving.floor_ms(CEILINGS) == pytest.approx(2.0)
    assert computing.floor_ms(CEILINGS) == pytest.approx(2.0)
    assert (moving.bound(CEILINGS), computing.bound(CEILINGS)) == ("bytes", "operations")


def test_a_layer_alone_has_the_operations_of_its_weights_and_its_pairs() -> None:
    """Twice for each weight and token, and twice for each number of each pair of a query and a key it sees."""
    work = layer_work(weights=100, heads=2, d_qk=3, d_v=5, d_model=8, length=4, sequences=2, number_bytes=2)
    assert work.operations == 2 * 8 * 100 + 2 * 2 * (1 + 2 + 3 + 4) * 2 * 8
    assert work.bytes == 2 * (100 + 8 * 16 + 8 * 16)


@pytest.mark.parametrize("name", ["small", "seed-high", "8b"])
def test_the_llama_that_is_compared_with_has_as_many_parameters(name: str) -> None:
    """Its MLP is chosen so that neither model is the larger one."""
    config = PRESETS[name]
    wanted = parameter_counts(config)[0]
    assert llama_parameters(config, llama_d_ff(config)) == pytest.approx(wanted, rel=0.01)


def test_the_llamas_parameters_are_those_of_its_config() -> None:
    """The count is that of the model which the config makes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = PRESETS["small"]
    given = llama_config(config, "float32")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{key: given[key] for key in given if key != "architectures"}))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == llama_parameters(config, llama_d_ff(config))
