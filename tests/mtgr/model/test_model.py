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
from mtgr.features import CANDIDATE, EVENT, GROUP_LANE, PROFILE, candidate_rows, write_video
from mtgr.kernels.silu_attention import silu_attention
from mtgr.kernels.time_buckets import TIME_BUCKETS, time_buckets
from mtgr.model.jagged import Group, Layout, length_batches
from mtgr.model.layer import HSTULayer, Sight
from mtgr.model.masks import Roles, causal_mask, history_roles
from mtgr.model.mtgr import MTGR, parameter_counts
from mtgr.model.norm import GroupLayerNorm
from mtgr.presets import PRESETS

CONFIG = PRESETS["tiny"].replace(
    d_model=24, n_layers=3, n_heads=2, d_qk=8, d_v=16, max_events=16, n_items=50, unknown_buckets=4
)
EVERYTHING: dict[str, Any] = {
    "position_bias": True,
    "time_bias": True,
    "item_bias": True,
    "similarity": "dot",
    "spare_items": 3,
    "video_categories": [{"name": "tag", "size": 5, "values": 2}],
    "video_numbers": [{"name": "seconds"}],
    "user_categories": [{"name": "city", "size": 7}],
    "user_numbers": [{"name": "age"}],
    "ranking": ["like"],
}


def _model(seed: int = 0, **changes: Any) -> MTGR:
    """A model all of whose parameters matter: none is left at the zero or one it starts with."""
    torch.manual_seed(seed)
    model = MTGR(CONFIG.replace(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def _rows(config: ModelConfig, tokens: int, seed: int = 0) -> Tensor:
    """Plausible feature rows (tokens, lanes) of one user: a profile and then events of any video, minutes apart."""
    random = np.random.default_rng(seed)
    rows = np.zeros((tokens, config.row_width), np.float32)
    rows[:, 4:] = random.integers(0, 5, rows[:, 4:].shape)
    write_video(rows, random.integers(0, config.n_indices, tokens))
    rows[:, GROUP_LANE] = EVENT
    if config.time_bias:
        times = 1_600_000_000 + np.cumsum(random.integers(0, 5000, tokens))
        rows[:, 4:8] = times.astype("<u4").view(np.uint8).reshape(tokens, 4)
    rows[0, :8] = 0
    rows[0, GROUP_LANE] = PROFILE
    return torch.from_numpy(rows)


def _layout(*lengths: int) -> Layout:
    return Layout.of(np.array(lengths))


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


def _layer_by_loops(
    layer: HSTULayer, config: ModelConfig, x: list[list[float]], groups: list[int], bias: Tensor | None
) -> Any:
    """The layer as its docstring has it, number by number; bias: (heads, L, L)."""
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
                score = dot / math.sqrt(config.d_qk) + (0.0 if bias is None else bias[head, i, j].item())
                weight = _silu(score) / config.max_length
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


@pytest.mark.parametrize("changes", [{}, {"d_ff": 12}, {"position_bias": True, "time_bias": True}])
def test_a_layer_is_its_formula(changes: dict[str, Any]) -> None:
    """The layer agrees with a loop over numbers, with MLP and biases and without, for all three token groups."""
    model = _model(**changes).double()
    layer = model.layers[1]
    assert isinstance(layer, HSTULayer)
    groups = [PROFILE, EVENT, EVENT, CANDIDATE, EVENT, CANDIDATE]
    times = [0, 1000, 1001, 0, 90_000, 0]
    length = len(groups)
    x = torch.randn(length, CONFIG.d_model, dtype=torch.float64)
    one_hot = functional.one_hot(torch.tensor(groups), GROUPS).double()
    places = torch.arange(length)
    gaps = torch.tensor(times)
    buckets = time_buckets(gaps[:, None], gaps[None, :])
    bias = None
    if layer.bias is not None:
        assert layer.bias.by_position is not None
        assert layer.bias.by_time is not None
        by_position, by_time = layer.bias.by_position.weight, layer.bias.by_time.weight
        distance = (places[:, None] - places[None, :]).clamp(min=0)
        bias = (by_position[distance] + by_time[buckets]).permute(2, 0, 1)
    sight = Sight(
        Group(places[None], None, places),
        causal_mask(length),
        places[:, None] - places[None, :],
        buckets[None],
    )
    with torch.no_grad():
        ours = layer(x, one_hot, [sight])
        expected = _layer_by_loops(layer, model.config, x.tolist(), groups, bias)
    torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_gaps_in_time_have_the_bucket_of_their_length() -> None:
    """Buckets grow with the gap and end at a profile's; a late event's negative gap counts as none."""
    gaps = torch.tensor([-5, 0, 1, 2, 3, 60, 3600, 86_400, 10**8, 1_700_000_000])
    buckets = time_buckets(gaps, torch.zeros_like(gaps))
    assert buckets.tolist() == sorted(buckets.tolist())
    assert buckets[0] == buckets[1] == 0
    assert len(set(buckets.tolist())) == len(gaps) - 1
    assert buckets[-1] == TIME_BUCKETS - 1


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


@pytest.mark.parametrize("changes", [{}, {"d_ff": 32}, {"positions": "none"}, EVERYTHING])
@torch.inference_mode()
def test_no_output_sees_a_later_event(changes: dict[str, Any]) -> None:
    """Leakage: whatever happens to an event, every earlier hidden state is the same to the bit, and its own is not."""
    model = _model(**changes)
    rows, others = _rows(model.config, 12), _rows(model.config, 12, seed=1)
    before = model(rows, _layout(12))
    for place in range(1, 12):
        changed = rows.clone()
        changed[place] = others[place]
        after = model(changed, _layout(12))
        assert torch.equal(after[:place], before[:place])
        assert not torch.allclose(after[place], before[place])


@torch.inference_mode()
def test_a_candidate_sees_what_came_before_its_place_and_no_other_candidate() -> None:
    """Leakage: candidates appended to a history change none of its states, nor each other's; each one's state depends
    on the events before its place and not on those after it.
    """
    model = _model(**EVERYTHING)
    rows = _rows(model.config, 9)
    alone = model(rows, _layout(9))
    candidates = torch.from_numpy(candidate_rows(np.array([3, 4]), model.config))
    place = 5
    roles = Roles(
        static=torch.tensor([True] + [False] * 10),
        candidate=torch.tensor([False] * 9 + [True] * 2),
        order=torch.tensor([*range(9), place, 9]),
    )
    together = model(torch.cat([rows, candidates]), _layout(11), roles)
    torch.testing.assert_close(together[:9], alone, rtol=1e-4, atol=1e-5)

    for token, seen_by_first, seen_by_second in ((4, True, True), (5, False, True), (8, False, True)):
        changed = torch.cat([rows, candidates])
        changed[token] = _rows(model.config, 9, seed=1)[token]
        after = model(changed, _layout(11), roles)
        assert torch.equal(after[9], together[9]) != seen_by_first
        assert torch.equal(after[10], together[10]) != seen_by_second
    changed = torch.cat([rows, candidates])
    changed[10] = torch.from_numpy(candidate_rows(np.array([7]), model.config))[0]
    assert torch.equal(model(changed, _layout(11), roles)[9], together[9])

    # at the end of a history a candidate is what an appended bare token would be
    appended = model(torch.cat([rows, candidates[1:]]), _layout(10))
    torch.testing.assert_close(appended[9], together[10], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_under_the_mixed_mask_static_tokens_see_each_other_and_nothing_recent() -> None:
    """A static event's state depends on a later static one and on no recent one; a recent one's on all before it."""
    model = _model(mask="mixed", recent_events=3)
    rows, others = _rows(model.config, 9), _rows(model.config, 9, seed=1)
    roles = history_roles(_layout(9), 3)
    assert roles.static.tolist() == [True] * 6 + [False] * 3
    before = model(rows, _layout(9), roles)
    for place in range(1, 9):
        changed = rows.clone()
        changed[place] = others[place]
        same = (model(changed, _layout(9), roles) == before).all(-1).tolist()
        assert same == ([False] * 9 if place < 6 else [True] * place + [False] * (9 - place))


@torch.inference_mode()
def test_appending_events_leaves_earlier_states_as_they_were() -> None:
    """Hidden states of a history stay exact while it grows, up to the model's full length: they can be cached."""
    model = _model(**EVERYTHING)
    longest = CONFIG.max_length
    rows = _rows(model.config, longest)
    full = model(rows, _layout(longest))
    for length in range(1, longest):
        grown = model(rows[:length], _layout(length))
        torch.testing.assert_close(grown, full[:length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(6, 15), (15, 6, 6, 1), (1, 1), (20, 3, 19, 2, 18)])
@torch.inference_mode()
def test_a_sequence_gives_beside_others_what_it_gives_alone(lengths: tuple[int, ...]) -> None:
    """Sequences of any lengths in any order, joined, do not touch each other."""
    model = _model(**EVERYTHING)
    rows = [_rows(model.config, length, seed) for seed, length in enumerate(lengths)]
    together = model(torch.cat(rows), _layout(*lengths))
    for part, alone in zip(together.split(lengths), rows, strict=True):
        torch.testing.assert_close(part, model(alone, _layout(len(alone))), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_every_feature_of_a_row_matters() -> None:
    """A change in any lane that can change an index or a number changes the token, an event's and a profile's."""
    model = _model(n_items=70_000, **EVERYTHING)
    rows = _rows(model.config, 3)
    before = model(rows, _layout(3))
    for token, lanes in ((1, [*range(1, 4), *range(5, 16)]), (0, [8, 11])):
        for lane in lanes:
            changed = rows.clone()
            changed[token, lane] = 1 - changed[token, lane].clamp(0, 1)
            after = model(changed, _layout(3))
            # the first event's own time is nothing to itself; the second sees it as a gap
            assert not torch.allclose(after[-1], before[-1]), lane


@torch.inference_mode()
def test_the_order_of_events_matters_where_positions_are_known() -> None:
    """Two orders of a history end differently with positions or their bias; without them they end alike."""
    rows = _rows(CONFIG, 8)
    swapped = rows[[0, 2, 1, *range(3, 8)]]
    for changes, matters in (
        ({"positions": "absolute"}, True),
        ({"positions": "none", "position_bias": True}, True),
        ({"positions": "none", "n_layers": 1}, False),
    ):
        model = _model(**changes)
        one, other = model(rows, _layout(8))[-1], model(swapped, _layout(8))[-1]
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5) != matters, changes


@torch.inference_mode()
def test_logits_are_over_the_catalog_and_bounded_by_the_temperature() -> None:
    """There is one logit for each video and none for a bucket; each is a cosine over the temperature."""
    model = _model(temperature=0.2)
    hidden = model(_rows(CONFIG, 5), _layout(5))
    logits = model.logits(hidden)
    assert logits.shape == (5, CONFIG.n_items)
    assert logits.abs().max() <= 1 / 0.2 + 1e-4
    query = functional.normalize(model.head.norm(hidden), dim=-1)
    video = functional.normalize(model.embeddings.video.ids.weight[7], dim=0)
    torch.testing.assert_close(logits[:, 7], query @ video / 0.2)


@torch.inference_mode()
def test_a_logit_by_product_has_the_videos_bias() -> None:
    """With similarity dot and an item bias a logit is the plain product over the temperature, plus that number."""
    model = _model(similarity="dot", item_bias=True, temperature=2.0)
    hidden = model(_rows(CONFIG, 5), _layout(5))
    assert model.head.bias is not None
    expected = model.head.norm(hidden) @ model.embeddings.video.ids.weight[7] / 2.0 + model.head.bias[7]
    torch.testing.assert_close(model.logits(hidden)[:, 7], expected)


@torch.inference_mode()
def test_an_added_video_is_its_bucket_and_its_attributes() -> None:
    """A video in a spare place differs from an unknown one by what its attributes say, and from its twin not at all."""
    model = _model(**EVERYTHING)
    videos = model.embeddings.video
    index, bucket = CONFIG.n_items, model.config.n_slots + 1
    videos.add(index, bucket, [2, 0], [0.5])
    videos.add(index + 1, bucket, [2, 0], [0.5])
    videos.add(index + 2, bucket, [3, 0], [0.5])
    first, twin, other, unknown = videos(torch.tensor([index, index + 1, index + 2, bucket]))
    assert torch.equal(first, twin)
    assert not torch.allclose(first, other)
    expected = videos.attributes(torch.tensor([2, 0]), torch.tensor([0.5])) - videos.attributes(
        torch.tensor([0, 0]), torch.tensor([0.0])
    )
    torch.testing.assert_close(first - unknown, expected)
    assert model.logits(torch.zeros(1, CONFIG.d_model), index + 2).shape == (1, index + 2)


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
