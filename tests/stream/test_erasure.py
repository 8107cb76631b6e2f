"""Deleted states are erased on a thread that a store can be closed at any moment of."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from stream import erasure
from stream.erasure import Eraser


def test_a_store_can_be_closed_while_its_erasure_is_being_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore may be called off while it writes a deletion: the store is closed all the same, and nothing is left."""
    beginning, go_on = threading.Event(), threading.Event()

    class SlowThread(threading.Thread):
        def start(self) -> None:
            beginning.set()
            assert go_on.wait(20)
            super().start()

    lock, event = threading.Lock, threading.Event
    monkeypatch.setattr(erasure, "threading", SimpleNamespace(Thread=SlowThread, Lock=lock, Event=event))
    eraser = Eraser(None, seconds=3_600)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(eraser.request)
        assert beginning.wait(20)
        closing = pool.submit(eraser.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.2)
        go_on.set()
        asking.result(timeout=20)
        closing.result(timeout=20)
    eraser.request()
    assert not [thread for thread in threading.enumerate() if thread.name == "erasure"]
