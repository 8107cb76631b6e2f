"""Promises of mtgr.training.prefetch: items come in order, errors where they belong, and no thread stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from training import CONFIG, PLAIN, batch_of, histories

from mtgr.catalog import Catalog
from mtgr.training.prefetch import ahead, prepared


def _threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_items_come_in_order_and_are_taken_ahead() -> None:
    """All of them, none taken much further ahead than asked."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ahead(items(), 3) as numbers:
        for expected, number in enumerate(numbers):
            assert number == expected
            assert len(taken) <= expected + 6
    assert taken == list(range(100))
    assert _threads() == 0


def test_what_goes_wrong_is_raised_behind_what_went_well() -> None:
    """The items before the error are had, and then it is raised."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    had: list[int] = []

    def use() -> None:
        with ahead(items(), 2) as numbers:
            for number in numbers:
                had.append(number)  # noqa: PERF402 extend keeps nothing where it is cut off

    with pytest.raises(ValueError, match="the sixth"):
        use()
    assert had == list(range(5))
    assert _threads() == 0


def test_an_iteration_that_is_left_leaves_no_thread() -> None:
    """Time is up in the midst of an epoch: the thread ends though its queue is full and nobody reads."""
    with ahead(iter(range(10**9)), 2) as numbers:
        assert next(numbers) == 0
    assert _threads() == 0


def test_a_batch_is_moved_whole() -> None:
    """Each tensor of a batch, those of its layout, roles, draws and candidates among them, is changed by map."""
    config = CONFIG.replace(ranking=["like"], spare_items=1)
    options = PLAIN.replace(negatives=4, cold_share=0.5)
    catalog = Catalog("abcdefghij", 4, 1)
    batch, _ = batch_of(histories("abcdef", "gh"), config, options, catalog)
    seen: list[torch.Tensor] = []

    def change(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor.to("meta")

    moved = batch.map(change)
    held = [getattr(moved, name) for name in batch.__dataclass_fields__]
    for part in (moved.layout, moved.roles, moved.draws, moved.candidates, *moved.layout.groups):
        held += [getattr(part, name) for name in part.__dataclass_fields__]  # type: ignore[union-attr]
    tensors = [one for one in held if isinstance(one, torch.Tensor)]
    assert len(tensors) == len(seen)
    assert all(tensor.is_meta for tensor in tensors)
    assert np.array_equal(moved.layout.lengths, batch.layout.lengths)


def test_on_the_cpu_batches_are_made_when_they_are_asked_for() -> None:
    """No thread, and nothing is made that is not used."""
    batch = object()
    with prepared(iter([batch]), torch.device("cpu")) as batches:  # type: ignore[list-item]
        assert _threads() == 0
        assert next(batches) is batch
