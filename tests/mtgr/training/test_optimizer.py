"""Promises of mtgr.training.optimizer: which weights decay, how the rate runs, and what is averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import CONFIG

from mtgr.model.mtgr import MTGR
from mtgr.training.optimizer import AveragedWeights, adamw, learning_rate
from mtgr.training.options import TrainingOptions


def test_matrices_decay_and_norms_biases_and_positions_do_not() -> None:
    """With no gradient, decay alone moves a weight: it moves those of products and embeddings."""
    model = MTGR(
        CONFIG.replace(d_ff=16, time_bias=True, position_bias=True, item_bias=True, ranking=["like"])
    )
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    adamw(model, TrainingOptions(weight_decay=0.5), 0.1).step()
    moved = {name for name, parameter in model.named_parameters() if not (parameter == 1).all()}
    kept = {name for name, _ in model.named_parameters()} - moved
    assert {"embeddings.video.ids.weight", "layers.0.uvqk.weight", "layers.1.mlp_up.weight"} <= moved
    assert {"embeddings.positions.weight", "embeddings.profile.everybody", "head.bias"} <= kept
    assert all(
        "norm" in name or "bias" in name or "positions" in name or "everybody" in name for name in kept
    )
    assert not any("norm" in name or ".bias" in name for name in moved)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_and_then_falls_to_the_end(schedule: str) -> None:
    """It begins small, is never above the peak, and ends near 0 unless it is to stay."""
    options = TrainingOptions(schedule=schedule, warm_up_steps=20)  # type: ignore[arg-type]
    rates = [learning_rate(options, 2.0, step, 1_000, step / 1_000) for step in range(1_000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[:19] == sorted(rates[:19])
    assert max(rates) <= 2.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == (2.0 if schedule == "constant" else pytest.approx(0.02))
    assert learning_rate(options, 2.0, 500, 1_000, 0.5) == pytest.approx(
        2.0 if schedule == "constant" else 1.0
    )


def test_a_short_training_warms_up_for_a_tenth_of_it() -> None:
    """A warm-up of 100 steps would leave 50 steps without a step at the full rate."""
    options = TrainingOptions(schedule="constant")
    assert learning_rate(options, 1.0, 4, 50, 0.0) == 1.0


@settings(max_examples=30, deadline=None)
@given(
    decay=st.floats(0.01, 0.999),
    walk=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=60),
)
def test_averages_weigh_each_step_by_what_later_steps_have_left_of_it(
    decay: float, walk: list[float]
) -> None:
    """The sum, in float64, of every step's weights times its share; the shares of all steps and the start are 1."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 3.0)
    averages = AveragedWeights(model, decay)
    for step, value in enumerate(walk, 1):
        torch.nn.init.constant_(model.weight, value)
        averages.update(step)
    decays = np.minimum(decay, [step / (step + 10) for step in range(1, len(walk) + 1)])
    shares = np.append(1.0, 1 - decays) * np.append(np.cumprod(decays[::-1])[::-1], 1.0)
    assert shares.sum() == pytest.approx(1.0)
    expected = float(shares @ [3.0, *walk])
    assert averages.values()["weight"].item() == pytest.approx(expected, abs=1e-4)


def test_averages_lend_themselves_and_come_back_bit_for_bit() -> None:
    """While applied the model has the averages, and afterwards both are as they were, also after an error."""
    model = torch.nn.Linear(2, 1)
    averages = AveragedWeights(model, 0.9)
    torch.nn.init.ones_(model.weight)
    averages.update(1)
    weight, average = model.weight.detach().clone(), averages.values()["weight"].clone()
    assert not torch.equal(weight, average)

    def lend() -> None:
        with averages.applied():
            assert torch.equal(model.weight, average)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        lend()
    assert torch.equal(model.weight, weight)
    assert torch.equal(averages.values()["weight"], average)
