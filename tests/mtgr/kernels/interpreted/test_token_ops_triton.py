"""The fused token operations in Triton equal their twins; the interpreter is slow, so batches are small."""

from __future__ import annotations

import pytest
import token_batches as check
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgr.kernels import token_ops_triton
from mtgr.kernels.top_k_triton import top_k

FEW = settings(max_examples=10)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@FEW
@given(tokens=st.integers(0, 4), width=st.sampled_from([4, 50, 256]), dtype=dtypes, shared=st.booleans())
def test_norms_equal_their_twins(tokens: int, width: int, dtype: torch.dtype, shared: bool) -> None:
    """By themselves, after a sum and before a gate, of any width."""
    check.check_norms(tokens, width, dtype, "cpu", shared)


@FEW
@given(
    tokens=st.integers(0, 6),
    dtype=dtypes,
    heads=st.integers(1, 5),
    d_qk=st.sampled_from([8, 25]),
    d_v=st.sampled_from([8, 50]),
    timed=st.booleans(),
)
def test_split_silu_store_equals_its_twin(
    tokens: int, dtype: torch.dtype, heads: int, d_qk: int, d_v: int, timed: bool
) -> None:
    """Of any heads and widths, with times and without."""
    check.check_split_silu_store(tokens, dtype, "cpu", heads=heads, d_qk=d_qk, d_v=d_v, timed=timed)


@FEW
@given(count=st.integers(0, 5000), dtype=dtypes)
def test_silu_equals_its_twin(count: int, dtype: torch.dtype) -> None:
    """Also where the last program has little to do."""
    check.check_silu(count, dtype, "cpu")


def test_silu_in_place_refuses_what_has_gaps() -> None:
    """Rather than writing into what lies between."""
    with pytest.raises(ValueError, match="not contiguous"):
        token_ops_triton.silu_(torch.zeros(4, 4)[:, :2])


@FEW
@given(rows=st.integers(0, 3), slots=st.integers(1, 40), items=st.integers(0, 600))
def test_mask_seen_equals_its_twin(rows: int, slots: int, items: int) -> None:
    """Nothing beside the slots is written."""
    check.check_mask_seen(rows, slots, items, "cpu")


@FEW
@given(rows=st.integers(1, 2), slots=st.sampled_from([64, 2048, 4100]), k=st.integers(1, 12))
def test_top_k_equals_its_twin(rows: int, slots: int, k: int) -> None:
    """Scores and places, in one chunk and in many."""
    check.check_top_k(rows, slots, k, "cpu")


@pytest.mark.parametrize("k", [0, 9])
def test_more_than_there_is_cannot_be_listed(k: int) -> None:
    """By name and value."""
    with pytest.raises(ValueError, match=f"k is {k}"):
        top_k(torch.zeros(1, 8), k)
