"""The twins of the fused token operations do what the layer of the model does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mtgr.config import GROUPS
from mtgr.kernels import token_ops
from mtgr.kernels.paged_reference import store
from mtgr.model.norm import GroupLayerNorm

TOKENS, HEADS, D_QK, D_V, BLOCK_SIZE = 11, 3, 8, 4, 16


def norm_of(width: int, groups: int) -> GroupLayerNorm:
    """One whose numbers tell the groups apart."""
    norm = GroupLayerNorm(width, 1e-6, groups)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm


@pytest.mark.parametrize("shared", [False, True])
def test_norms_equal_the_models(shared: bool) -> None:
    """With a weight for each group and with one for all; after a sum, and before a gate."""
    torch.manual_seed(0)
    norm = norm_of(24, 1 if shared else GROUPS)
    x, delta, u = torch.randn(3, TOKENS, 24).unbind()
    groups = torch.randint(0, GROUPS, (TOKENS,), dtype=torch.uint8)
    one_hot = functional.one_hot(groups.long(), GROUPS).float()
    arguments = (groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(token_ops.group_norm(x, *arguments), norm(x, one_hot))
    torch.testing.assert_close(token_ops.gated_group_norm(x, u, *arguments), norm(x, one_hot) * u)
    total, normed = token_ops.add_group_norm(x, delta, *arguments)
    torch.testing.assert_close(total, x + delta)
    torch.testing.assert_close(normed, norm(x + delta, one_hot))


@pytest.mark.parametrize("timed", [False, True])
def test_split_silu_store_equals_its_parts(timed: bool) -> None:
    """U and Q as the layer goes on with them, keys and values as they would be stored by themselves."""
    torch.manual_seed(0)
    projected = torch.randn(TOKENS, 2 * HEADS * (D_V + D_QK))
    times = torch.randint(0, 256, (TOKENS, 4)).float() if timed else None
    slots = torch.randperm(3 * BLOCK_SIZE)[:TOKENS]
    cache, wanted = torch.zeros(2, 3, HEADS, BLOCK_SIZE, D_QK + 4 * timed + D_V).unbind()
    u, q = token_ops.split_silu_store(projected, cache, slots, times, heads=HEADS, d_qk=D_QK, d_v=D_V)
    widths = [HEADS * D_V, HEADS * D_V, HEADS * D_QK, HEADS * D_QK]
    wanted_u, v, wanted_q, k = functional.silu(projected).split(widths, dim=1)
    wanted_q, k = (one.view(TOKENS, HEADS, D_QK) for one in (wanted_q, k))
    if times is not None:
        lanes = times[:, None].expand(-1, HEADS, -1)
        wanted_q, k = torch.cat([wanted_q, lanes], -1), torch.cat([k, lanes], -1)
    store(k, v.view(TOKENS, HEADS, D_V), wanted, slots, timed=timed)
    for found, right in ((u, wanted_u), (q, wanted_q), (cache, wanted)):
        torch.testing.assert_close(found, right, rtol=0, atol=0)


def test_seen_items_are_masked_and_others_are_not() -> None:
    """What is no slot, and what is past a row's length, is passed over."""
    logits = torch.zeros(2, 5)
    items = torch.tensor([[1, -1, 4, 5], [0, 0, 3, 2]], dtype=torch.int32)
    token_ops.mask_seen(logits, items, torch.tensor([4, 2]))
    assert logits.isinf().tolist() == [
        [False, True, False, False, True],
        [True, False, False, False, False],
    ]
    token_ops.mask_seen(logits, items)
    assert logits[1].isinf().tolist() == [True, False, True, True, False]


def test_of_equal_logits_the_first_is_listed_first() -> None:
    """So that a list does not hang on the device."""
    values, places = token_ops.top_k(torch.tensor([[1.0, 3, 3, 2, 3, -1]]), 4)
    assert values.tolist() == [[3, 3, 3, 2]]
    assert places.tolist() == [[1, 2, 4, 3]]


def test_normalized_logits_are_log_probabilities() -> None:
    """What is masked has no part in them."""
    values, places = token_ops.top_k(torch.tensor([[0.0, -torch.inf, 0.0, -1e9]]), 2, normalized=True)
    torch.testing.assert_close(values.exp(), torch.tensor([[0.5, 0.5]]))
    assert places.tolist() == [[0, 2]]
