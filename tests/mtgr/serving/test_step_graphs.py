"""A step that runs in a larger graph gives what it would give alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtgr.kernels import paged_reference
from mtgr.kernels.paged import plan_step, tile_for
from mtgr.serving.step_graphs import StepGraphs
from mtgr.serving.step_inputs import HostStep, StepInputs, inputs_on

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

    def __call__(self, inputs: StepInputs) -> Tensor:
        rows, slots = inputs.rows, inputs.slots
        q, k, v = rows.view(len(rows), 3, HEADS, WIDTH).unbind(1)
        paged_reference.store(k, v, self.cache, slots)
        output = torch.zeros(len(rows), HEADS, WIDTH)
        paged_reference.attend(q, self.cache, output, inputs.step, scale=0.5, normalizer=0.1, bias=None)
        return output.flatten(1) + inputs.positions.unsqueeze(1) + inputs.items.unsqueeze(1)


def graphs_of(layer: Layer, step_tokens: int) -> StepGraphs:
    graphs = StepGraphs(
        layer,
        lanes=LANES,
        requests=REQUESTS,
        blocks=BLOCKS,
        block_size=BLOCK,
        step_tokens=step_tokens,
        device=torch.device("cpu"),
    )
    assert graphs.capture(Again) > 5
    return graphs


def step_of(requests: list[tuple[int, int]], chance: np.random.Generator) -> HostStep:
    """Of requests with so many tokens cached and new; no two share a block."""
    new = np.array([one for _, one in requests], np.int32)
    tokens = int(new.sum())
    return HostStep(
        rows=chance.standard_normal((tokens, LANES)).astype(np.float32),
        items=chance.integers(-1, 99, tokens).astype(np.int32),
        cached=np.array([one for one, _ in requests], np.int32),
        new=new,
        blocks=1 + np.arange(len(requests) * BLOCKS, dtype=np.int32).reshape(-1, BLOCKS),
    )


def plain_inputs(host: HostStep) -> StepInputs:
    """What a step's inputs are, without padding."""
    starts = np.concatenate([[0], np.cumsum(host.new)]).astype(np.int32)
    request = np.repeat(np.arange(len(host.new)), host.new)
    positions = np.arange(starts[-1]) - starts[request] + host.cached[request]
    slots = host.blocks[request, positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK
    tile = tile_for(int(host.new.max()))
    step = plan_step(starts, host.cached + host.new, torch.from_numpy(host.blocks), tile_queries=tile)
    return StepInputs(
        rows=torch.as_tensor(host.rows),
        items=torch.as_tensor(host.items),
        positions=torch.from_numpy(positions),
        slots=torch.from_numpy(slots),
        step=step,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 25) | st.just(1)), min_size=1, max_size=REQUESTS),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_padding_changes_nothing(requests: list[tuple[int, int]], made_there: bool, seed: int) -> None:
    """Requests of one new token or many, with anything cached, one step after the other in the same memory; rows come
    from the host or were made on the device."""
    chance = np.random.default_rng(seed)
    alone, padded = Layer(), Layer()
    graphs = graphs_of(padded, 256)
    for some in (requests, [(cached + new, 1) for cached, new in requests]):
        host = step_of(some, chance)
        if made_there:
            host = replace(host, rows=torch.from_numpy(host.rows), items=torch.from_numpy(host.items))
        made = graphs.run(host)
        assert made is not None
        got, inputs = made
        wanted = plain_inputs(host)
        torch.testing.assert_close(got, alone(wanted))
        torch.testing.assert_close(padded.cache[1:], alone.cache[1:])
        for name in ("rows", "items", "positions", "slots"):
            assert torch.equal(getattr(inputs, name), getattr(wanted, name)), name
        for name in ("query_starts", "lengths", "block_table"):
            assert torch.equal(getattr(inputs.step, name), getattr(wanted.step, name)), name


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 25)), min_size=1, max_size=REQUESTS),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_a_step_without_a_graph_has_the_same_inputs(
    requests: list[tuple[int, int]], made_there: bool, seed: int
) -> None:
    """In memory of their own, and without padding."""
    host = step_of(requests, np.random.default_rng(seed))
    wanted = plain_inputs(host)
    if made_there:
        host = replace(host, rows=wanted.rows.clone(), items=wanted.items.clone())
    got = inputs_on(torch.device("cpu"), host, BLOCK)
    for name in ("rows", "items", "positions", "slots"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    for name in ("query_starts", "lengths", "block_table", "tiles"):
        assert torch.equal(getattr(got.step, name), getattr(wanted.step, name)), name
    assert got.step.tile_queries == wanted.step.tile_queries


def test_a_step_that_no_graph_holds_is_left_to_others() -> None:
    """None where there are more tokens than the largest graph has."""
    host = step_of([(0, 65)], np.random.default_rng(1))
    assert graphs_of(Layer(), 64).run(replace(host, blocks=np.ones((1, 17), np.int32))) is None


@pytest.mark.parametrize(("most_new", "tile"), [(1, 1), (2, 16), (16, 16), (17, 64), (4096, 64)])
def test_tiles_fit_what_requests_bring(most_new: int, tile: int) -> None:
    """One event each is a row each; whole histories go through in large tiles."""
    assert tile_for(most_new) == tile
