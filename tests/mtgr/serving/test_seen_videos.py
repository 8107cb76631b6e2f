"""The sampler's mask stays with its request, and never ends the engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtgr.serving.seen_argument import SEEN_ARGUMENT, seen_argument

pytestmark = pytest.mark.vllm

ITEMS = 6


def params(*seen: int, steps: int = 1) -> SimpleNamespace:
    return SimpleNamespace(extra_args=seen_argument(np.array(seen)) if seen else None, max_tokens=steps)


def update(*, added: Any = (), removed: Any = (), moved: Any = (), sampled: list[int] | None = None) -> Any:
    """sampled: what vLLM has sampled for all that are added, a list that it goes on with."""
    from vllm.v1.sample.logits_processor import BatchUpdate

    output: list[int] = [] if sampled is None else sampled
    return BatchUpdate(8, list(removed), [(index, one, None, output) for index, one in added], list(moved))


@pytest.fixture
def mask() -> Any:
    from mtgr.serving.seen_videos import SeenVideosMask

    model = {
        "d_model": 8,
        "n_layers": 1,
        "n_heads": 1,
        "d_qk": 8,
        "d_v": 8,
        "max_events": 16,
        "n_items": ITEMS - 1,
        "spare_items": 1,
    }
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(model=model)))
    return SeenVideosMask(config, torch.device("cpu"), False)


def masked(mask: Any, requests: int) -> list[list[int]]:
    """The videos left out for each request of the batch."""
    logits = mask.apply(torch.zeros(requests, ITEMS))
    return [torch.nonzero(row == -torch.inf).flatten().tolist() for row in logits]


def test_each_request_leaves_out_its_own_videos(mask: Any) -> None:
    """A request without seen videos leaves out none."""
    mask.update_state(update(added=[(0, params(1, 4)), (1, params()), (2, params(0))]))
    assert masked(mask, 3) == [[1, 4], [], [0]]


def test_the_mask_follows_requests_that_leave_and_move(mask: Any) -> None:
    """vLLM fills gaps in its batch by moving requests, and swaps others."""
    from vllm.v1.sample.logits_processor import MoveDirectionality

    mask.update_state(update(added=[(0, params(0)), (1, params(1, 5)), (2, params(2))]))
    mask.update_state(update(removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert masked(mask, 2) == [[2], [1, 5]]
    mask.update_state(update(moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert masked(mask, 2) == [[1, 5], [2]]
    mask.update_state(None)
    assert masked(mask, 2) == [[1, 5], [2]]
    mask.update_state(update(added=[(0, params())], removed=[1]))
    assert masked(mask, 2) == [[], []]


def test_a_slate_leaves_out_what_it_has(mask: Any) -> None:
    """The more, the longer it is, wherever it stands in the batch; a list of one step has nothing yet."""
    from vllm.v1.sample.logits_processor import MoveDirectionality

    sampled: list[int] = []
    mask.update_state(update(added=[(0, params(3))]))
    mask.update_state(update(added=[(1, params(1, steps=3))], sampled=sampled))
    assert masked(mask, 2) == [[3], [1]]
    sampled.append(5)
    assert masked(mask, 2) == [[3], [1, 5]]
    mask.update_state(update(removed=[0], moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    sampled.append(0)
    assert masked(mask, 1) == [[0, 1, 5]]
    mask.update_state(update(removed=[0]))
    assert masked(mask, 1) == [[]]


def test_a_slate_that_was_put_off_goes_on_with_what_it_had(mask: Any) -> None:
    """vLLM takes a request out of the batch when the cache is full, and in again with what it has sampled."""
    mask.update_state(update(added=[(0, params(steps=3))], sampled=[4, -1]))
    assert masked(mask, 1) == [[4]]


def test_an_index_outside_the_catalog_is_passed_over(mask: Any) -> None:
    """The engine has the requests of others too."""
    mask.update_state(update(added=[(0, params(ITEMS, 3, 2**32 - 1))]))
    assert masked(mask, 1) == [[3]]


@pytest.mark.parametrize("seen", [b"\x00" * 5, [1, 2], "12", None])
def test_seen_videos_of_the_wrong_kind_are_refused_at_the_door(mask: Any, seen: Any) -> None:
    """Where a request comes in, not in the sampler."""
    with pytest.raises(ValueError, match=SEEN_ARGUMENT):
        mask.validate_params(SimpleNamespace(extra_args={SEEN_ARGUMENT: seen}))


@pytest.mark.parametrize("extra", [None, {}, {SEEN_ARGUMENT: b""}, {SEEN_ARGUMENT: b"\x01\x00\x00\x00"}])
def test_whole_indices_or_none_are_welcome(mask: Any, extra: Any) -> None:
    """A user may have seen nothing that the catalog has."""
    mask.validate_params(SimpleNamespace(extra_args=extra))
