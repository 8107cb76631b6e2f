"""Batches made ready ahead of the device that trains on them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from mtgr.training.batches import Batch

_AHEAD: Final = 3  # batches that wait: enough to even out small and large ones


@contextmanager
def prepared(batches: Iterable[Batch], device: torch.device) -> Iterator[Iterator[Batch]]:
    """Iterate over batches on a device.

    For CUDA a thread makes and copies them ahead, on a stream of its own, so that neither the device nor the
    thread that drives it waits for a batch. On the CPU, where nobody waits, each is made when it is asked for.
    What goes wrong in making a batch is raised where it would have been had.
    """
    if device.type == "cpu":
        yield iter(batches)
        return
    feed = _Feed(batches, device)
    try:
        yield iter(feed)
    finally:
        feed.close()


class _Feed:
    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._batches: Final = batches
        self._device: Final = device
        self._stream: Final = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ready: Final[queue.Queue[tuple[Batch, torch.cuda.Event] | BaseException | None]] = queue.Queue(
            _AHEAD
        )
        self._closed: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._fill, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, copied = item
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)

            def keep(tensor: Tensor, current: torch.cuda.Stream = current) -> Tensor:
                tensor.record_stream(current)  # its memory is not given to another copy before it is used
                return tensor

            yield batch.map(keep)

    def close(self) -> None:
        """End the thread, whatever it is about."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _fill(self) -> None:
        last: BaseException | None = None
        try:
            with torch.cuda.stream(self._stream):
                for batch in self._batches:
                    moved = batch.map(self._move)
                    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    copied.record(self._stream)
                    self._ready.put((moved, copied))
                    if self._closed.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 it is raised where the batches are used
            last = error
        self._ready.put(last)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self._device, non_blocking=True)
