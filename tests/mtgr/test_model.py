"""Promises of mtgr.model: it computes the published formula, sees no future, and stays exact as history grows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtgr.config import GROUPS, ModelConfig
from mtgr.features import CANDIDATE, EVENT, GROUP_LANE, PROFILE, write_video
from mtgr.kernels.silu_attention import silu_attention
from mtgr.model.layer import HSTULayer
from mtgr.model.masks import causal_mask
from mtgr.model.mtgr import MTGR, parameter_counts
from mtgr.model.norm import GroupLayerNorm
from mtgr.model.padding import length_batches, pad_rows
from mtgr.presets import PRESETS

CONFIG = PRESETS["tiny"].replace(
    d_model=24, n_layers=3, n_heads=2, d_qk=8, d_v=16, max_events=16, n_items=50, unknown_buckets=4
)


def _model(seed: int = 0, **changes: Any) -> MTGR:
    """A model all of whose parameters matter: none is left at the zero or one it starts with."""
    torch.manual_seed(seed)
    model = MTGR(CONFIG.replace(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def _rows(config: ModelConfig, users: int, tokens: int, seed: int = 0) -> Tensor:
    """Plausible feature rows: a profile and then events of any video."""
    random = np.random.default_rng(seed)
    rows = np.zeros((users, tokens, config.row_width), np.float32)
    events = rows[:, 1:]
    events[..., 4:] = random.integers(0, 5, events[..., 4:].shape)
    flat = events.reshape(-1, config.row_width)
    write_video(flat, random.integers(0, config.n_indices, len(flat)))
    flat[:, GROUP_LANE] = EVENT
    rows[:, 1:] = flat.reshape(events.shape)
    rows[:, 0, GROUP_LANE] = PROFILE
    return torch.from_numpy(rows)


def _silu(number: float) -> float:
    return number / (1 + math.exp(-number))


def _norm(vector: list[float], weight: Tensor, bias: Tensor, eps: float) -> list[float]:
    mean = sum(vector) / len(vector)
    variance = sum((x - mean) ** 2 for x in vector) / len(vector)
    return [
        (x - mean) / math.sqrt(variance + eps) * w + b
        for x, w, b in zip(vector, weight.tolist(), bias.tolist(), strict=True)
    ]


def _times(matrix: Tensor, vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix.tolist()]


def _layer_by_loops(layer: HSTULayer, config: ModelConfig, x: list[list[float]], groups: list[int]) -> Any:
    """The layer as its docstring has it, number by number."""
    eps, heads = config.norm_eps, config.n_heads
    width_v, width_qk = heads * config.d_v, heads * config.d_qk
    u, v, q, k = [], [], [], []
    for vector, group in zip(x, groups, strict=True):
        normed = _norm(vector, layer.norm_in.weight[group], layer.norm_in.bias[group], eps)
        fused = [_silu(number) for number in _times(layer.uvqk.weight, normed)]
        u.append(fused[:width_v])
        v.append(fused[width_v : 2 * width_v])
        q.append(fused[2 * width_v : 2 * width_v + width_qk])
        k.append(fused[2 * width_v + width_qk :])
    result = []
    for i, group in enumerate(groups):
        attended = [0.0] * width_v
        for head in range(heads):
            for j in range(i + 1):
                dot = sum(
                    q[i][head * config.d_qk + d] * k[j][head * config.d_qk + d] for d in range(config.d_qk)
                )
                weight = _silu(dot / math.sqrt(config.d_qk)) / config.max_length
                for d in range(config.d_v):
                    attended[head * config.d_v + d] += weight * v[j][head * config.d_v + d]
        normed = _norm(attended, layer.norm_attention.weight[group], layer.norm_attention.bias[group], eps)
        gated = [a * b for a, b in zip(normed, u[i], strict=True)]
        y = [a + b for a, b in zip(x[i], _times(layer.out.weight, gated), strict=True)]
        if config.d_ff:
            normed = _norm(y, layer.norm_mlp.weight[group], layer.norm_mlp.bias[group], eps)
            hidden = [_silu(number) for number in _times(layer.mlp_up.weight, normed)]
            y = [a + b for a, b in zip(y, _times(layer.mlp_down.weight, hidden), strict=True)]
        result.append(y)
    return result


@pytest.mark.parametrize("d_ff", [0, 12])
def test_a_layer_is_its_formula(d_ff: int) -> None:
    """The layer agrees with a loop over numbers, with and without the MLP, for all three token groups."""
    model = _model(d_ff=d_ff).double()
    layer = model.layers[1]
    assert isinstance(layer, HSTULayer)
    groups = [PROFILE, EVENT, EVENT, CANDIDATE, EVENT, CANDIDATE]
    x = torch.randn(1, len(groups), CONFIG.d_model, dtype=torch.float64)
    one_hot = functional.one_hot(torch.tensor([groups]), GROUPS).double()
    with torch.no_grad():
        ours = layer(x, one_hot, causal_mask(len(groups)))
        expected = _layer_by_loops(layer, model.config, x[0].tolist(), groups)
    torch.testing.assert_close(ours[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_a_group_norm_is_a_layer_norm_of_each_group() -> None:
    """Every token is normed with its own group's weight and bias."""
    norm = GroupLayerNorm(8, 1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    groups = torch.tensor([0, 1, 2, 1])
    x = torch.randn(4, 8)
    normed = norm(x, functional.one_hot(groups, GROUPS).float())
    for token, group in enumerate(groups.tolist()):
        expected = functional.layer_norm(x[token], (8,), norm.weight[group], norm.bias[group], 1e-6)
        torch.testing.assert_close(normed[token], expected)


def test_a_masked_key_weighs_nothing_and_the_others_what_they_weighed() -> None:
    """The mask comes after the SiLU and there is no softmax: hiding a key takes its term away, no more."""
    q, k, v = torch.randn(3, 5, 8).unbind()
    full = silu_attention(q, k, v, torch.ones(5, 5), scale=0.3, length=7)
    mask = torch.ones(5, 5)
    mask[:, 2] = 0
    hidden = silu_attention(q, k, v, mask, scale=0.3, length=7)
    term = silu_attention(q, k[2:3], v[2:3], torch.ones(5, 1), scale=0.3, length=7)
    torch.testing.assert_close(full - term, hidden)


@pytest.mark.parametrize("changes", [{}, {"d_ff": 32}, {"positions": "none"}])
@torch.inference_mode()
def test_no_output_sees_a_later_event(changes: dict[str, Any]) -> None:
    """Whatever happens to an event, every earlier hidden state is the same to the bit, and its own is not."""
    model = _model(**changes)
    rows = _rows(CONFIG, 2, 12)
    before = model(rows)
    for place in range(1, 12):
        changed = rows.clone()
        changed[:, place] = _rows(CONFIG, 2, 12, seed=1)[:, place]
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


@torch.inference_mode()
def test_appending_events_leaves_earlier_states_as_they_were() -> None:
    """Hidden states of a history stay exact while it grows, up to the model's full length: they can be cached."""
    model = _model()
    rows = _rows(CONFIG, 1, CONFIG.max_length)
    full = model(rows)
    for length in range(1, CONFIG.max_length):
        torch.testing.assert_close(model(rows[:, :length]), full[:, :length], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_padding_changes_nothing() -> None:
    """A sequence padded on the right beside a longer one gives what it gives alone."""
    model = _model()
    long, short = _rows(CONFIG, 1, 15)[0].numpy(), _rows(CONFIG, 1, 6, seed=3)[0].numpy()
    padded = pad_rows(np.concatenate([short, long]), np.array([6, 15]))
    together = model(padded)
    alone = model(torch.from_numpy(short)[None])
    torch.testing.assert_close(together[0, :6], alone[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_every_feature_of_a_row_matters() -> None:
    """A change in any lane that can change an index or a number changes the token."""
    model = _model(n_items=70_000)
    rows = _rows(model.config, 1, 3)
    before = model(rows)
    for lane in range(1, model.config.row_width):
        changed = rows.clone()
        changed[:, 1, lane] = 1 - changed[:, 1, lane].clamp(0, 1)
        assert not torch.allclose(model(changed)[:, 1], before[:, 1]), lane


@torch.inference_mode()
def test_the_order_of_events_matters_where_positions_are_known() -> None:
    """Two orders of a history end differently with positions; without them and the gaps they end alike."""
    rows = _rows(CONFIG, 1, 8)
    swapped = rows[:, [0, 2, 1, *range(3, 8)]]
    with_positions, without = _model(positions="absolute"), _model(positions="none", n_layers=1)
    assert not torch.allclose(with_positions(rows)[:, -1], with_positions(swapped)[:, -1])
    torch.testing.assert_close(without(rows)[:, -1], without(swapped)[:, -1])


@torch.inference_mode()
def test_logits_are_over_the_catalog_and_bounded_by_the_temperature() -> None:
    """There is one logit for each video and none for a bucket; each is a cosine over the temperature."""
    model = _model(temperature=0.2)
    hidden = model(_rows(CONFIG, 3, 5))
    logits = model.logits(hidden[:, -1])
    assert logits.shape == (3, CONFIG.n_items)
    assert logits.abs().max() <= 1 / 0.2 + 1e-4
    query = functional.normalize(model.head.norm(hidden[:, -1]), dim=-1)
    video = functional.normalize(model.embeddings.video.ids.weight[7], dim=0)
    torch.testing.assert_close(logits[:, 7], query @ video / 0.2)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tiny", 7e5, 8e5), ("seed-light", 1.4e8, 1.6e8), ("seed-high", 3.5e8, 5e8), ("8b", 7.5e9, 8.5e9)],
)
def test_presets_are_as_large_as_they_say(name: str, low: float, high: float) -> None:
    """Parameters are counted on the model itself; seed-high is about half a billion, 8b truly eight."""
    total, videos = parameter_counts(PRESETS[name])
    assert low < total < high
    assert videos == PRESETS[name].n_indices * PRESETS[name].d_model


def test_counting_agrees_with_a_model_that_has_storage() -> None:
    """The count on the meta device is the count of the real tensors."""
    assert parameter_counts(CONFIG)[0] == sum(tensor.numel() for tensor in MTGR(CONFIG).state_dict().values())


def test_batches_by_length_hold_every_sequence_once_within_the_memory_bound() -> None:
    """Nothing is lost, the like-long are together, and a sequence too large for any batch has its own."""
    config = PRESETS["large"]
    random = np.random.default_rng(0)
    lengths = random.integers(1, 4000, 300).tolist()
    batches = list(length_batches(lengths, config))
    assert sorted(number for batch in batches for number in batch) == list(range(300))
    ordered = [lengths[number] for batch in batches for number in batch]
    assert ordered == sorted(lengths)
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert len(batch) == 1 or len(batch) * config.n_heads * longest**2 <= 1 << 25
    assert list(length_batches([], config)) == []
