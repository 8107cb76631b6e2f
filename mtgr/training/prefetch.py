"""Batches made ready ahead of the device that trains on them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

import torch
from torch import Tensor

from mtgr.training.batches import Batch

_AHEAD: Final = 3  # batches that wait: enough to even out small and large ones
_Item = TypeVar("_Item")


@contextmanager
def prepared(batches: Iterable[Batch], device: torch.device) -> Iterator[Iterator[Batch]]:
    """Iterate over batches on a device.

    For CUDA a thread makes and copies them ahead, on a stream of its own, so that neither the device nor the
    thread that drives it waits for a batch. On the CPU, where nobody waits, each is made when it is asked for.
    """
    if device.type == "cpu":
        yield iter(batches)
        return
    with ahead(_copied(batches, device)) as copies:
        yield _awaited(copies, device)


@contextmanager
def ahead(items: Iterable[_Item], count: int = _AHEAD) -> Iterator[Iterator[_Item]]:
    """Iterate over items that a thread takes ahead, up to so many.

    What goes wrong in taking one is raised where it would have been had. The thread ends with the context.
    """
    taker = _Taker(items, count)
    try:
        yield iter(taker)
    finally:
        taker.close()


class _Taker(Generic[_Item]):
    def __init__(self, items: Iterable[_Item], count: int) -> None:
        self._items: Final = items
        # (an item,), then what went wrong, or None
        self._taken: Final[queue.Queue[tuple[_Item] | BaseException | None]] = queue.Queue(count)
        self._closed: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._take, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[_Item]:
        while (taken := self._taken.get()) is not None:
            if isinstance(taken, BaseException):
                raise taken
            yield taken[0]

    def close(self) -> None:
        """End the thread, whatever it is about."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._taken.get(timeout=0.05)  # a full queue would hold it up
            except queue.Empty:
                continue

    def _take(self) -> None:
        last: BaseException | None = None
        try:
            for item in self._items:
                if self._closed.is_set():
                    return
                self._taken.put((item,))
        except BaseException as error:  # noqa: BLE001 it is raised where the item would have been had
            last = error
        self._taken.put(last)


def _copied(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Each batch on its way to the device, and the event of its arrival."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(device, non_blocking=True)

    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.map(copy)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        yield copied, arrived


def _awaited(copies: Iterable[tuple[Batch, torch.cuda.Event]], device: torch.device) -> Iterator[Batch]:
    for copied, arrived in copies:
        current = torch.cuda.current_stream(device)
        current.wait_event(arrived)

        def keep(tensor: Tensor, current: torch.cuda.Stream = current) -> Tensor:
            tensor.record_stream(current)  # its memory goes to no other copy before it has been used
            return tensor

        yield copied.map(keep)
