"""A step that runs in a larger graph gives what it would give alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtgr.kernels import paged_reference
from mtgr.kernels.paged import PADDING, PagedStep, plan_step, tile_for
from mtgr.serving.step_graphs import StepGraphs

HEADS, WIDTH, BLOCK, BLOCKS, REQUESTS = 2, 4, 4, 12, 6
LANES = 3 * HEADS * WIDTH


@dataclass
class Again:
    """In place of a CUDA graph: the same work on the same buffers, done anew."""

    compute: Callable[[], Tensor]

    def __post_init__(self) -> None:
        self.result = self.compute().clone()

    def replay(self) -> None:
        self.result.copy_(self.compute())


class Layer:
    """One layer of attention over a paged cache: a row holds its token's query, key and value."""

    def __init__(self) -> None:
        self.cache = torch.zeros(1 + REQUESTS * BLOCKS, HEADS, BLOCK, 2 * WIDTH)

    def __call__(self, rows: Tensor, positions: Tensor, slots: Tensor, step: PagedStep) -> Tensor:
        q, k, v = rows.view(len(rows), 3, HEADS, WIDTH).unbind(1)
        paged_reference.store(k, v, self.cache, slots)
        output = torch.zeros(len(rows), HEADS, WIDTH)
        paged_reference.attend(q, self.cache, output, step, scale=0.5, normalizer=0.1, bias=None)
        return output.flatten(1) + positions.unsqueeze(1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 25) | st.just(1)), min_size=1, max_size=REQUESTS),
    st.integers(0, 2**32),
)
def test_padding_changes_nothing(requests: list[tuple[int, int]], seed: int) -> None:
    """Requests of one new token or many, with anything cached, one step after the other on the same buffers."""
    chance = np.random.default_rng(seed)
    alone, padded = Layer(), Layer()
    graphs = StepGraphs(
        padded, lanes=LANES, requests=REQUESTS, blocks=BLOCKS, step_tokens=256, device=torch.device("cpu")
    )
    assert graphs.capture(Again) > 10
    for some in (requests, [(cached + new, 1) for cached, new in requests]):
        cached = np.array([one for one, _ in some], np.int32)
        new = np.array([one for _, one in some], np.int32)
        starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        blocks = 1 + np.arange(len(some) * BLOCKS, dtype=np.int32).reshape(-1, BLOCKS)
        request = np.repeat(np.arange(len(some)), new)
        positions = np.arange(starts[-1]) - starts[request] + cached[request]
        slots = blocks[request, positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK
        rows = torch.from_numpy(chance.standard_normal((int(starts[-1]), LANES)).astype(np.float32))
        got = graphs.run(rows, positions, slots, starts, cached + new, blocks)
        step = plan_step(
            starts, cached + new, torch.from_numpy(blocks), tile_queries=tile_for(int(new.max()))
        )
        wanted = alone(rows, torch.from_numpy(positions), torch.from_numpy(slots), step)
        assert got is not None
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(padded.cache[1:], alone.cache[1:])


def test_a_step_that_no_graph_holds_is_left_to_others() -> None:
    """None where there are more tokens than the largest graph has."""
    graphs = StepGraphs(
        Layer(), lanes=LANES, requests=REQUESTS, blocks=BLOCKS, step_tokens=64, device=torch.device("cpu")
    )
    graphs.capture(Again)
    starts, lengths = np.array([0, 65], np.int32), np.array([65], np.int32)
    nothing = np.full(65, PADDING)
    assert (
        graphs.run(torch.zeros(65, LANES), nothing, nothing, starts, lengths, np.ones((1, 12), np.int32))
        is None
    )


@pytest.mark.parametrize(("most_new", "tile"), [(1, 1), (2, 16), (16, 16), (17, 64), (4096, 64)])
def test_tiles_fit_what_requests_bring(most_new: int, tile: int) -> None:
    """One event each is a row each; whole histories go through in large tiles."""
    assert tile_for(most_new) == tile
