"""How an engine process lives and ends with the process that started it."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import multiprocessing.util  # waits for children at exit; what is registered after it comes before it
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_ENGINE_PROCESS: Final = "EngineCore"  # how vLLM names them
_WORKER_PROCESS: Final = "VllmWorker"


def in_engine_process() -> bool:
    """Whether this is a process that vLLM started for an engine."""
    return multiprocessing.current_process().name.startswith(_ENGINE_PROCESS)


def in_worker_process() -> bool:
    """Whether this is a process that vLLM started for one rank of several."""
    return multiprocessing.current_process().name.startswith(_WORKER_PROCESS)


def belong_to_parent() -> None:
    """End this process with its parent, however that one ends: vLLM's engine process outlives a killed one."""

    def wait() -> None:
        # multiprocessing knows the parent only after it has read the process's arguments
        while (parent := multiprocessing.parent_process()) is None:
            time.sleep(0.05)
        parent.join()
        os._exit(1)  # nothing is left to be saved, and nobody to say goodbye to

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; when the engine ends is for its owner to say, who may drain."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Let processes that are started meanwhile never get Ctrl-C, whatever they do about it themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def end_engines_at_exit() -> None:
    """Let engine processes that nobody has closed end when this one exits.

    multiprocessing waits at exit for its children, before vLLM would end them, and an engine waits for what to do.
    """
    atexit.register(_end_engines, os.getpid())


def _end_engines(owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork, whose parent's they are
    for process in multiprocessing.active_children():
        if process.name.startswith(_ENGINE_PROCESS):
            process.kill()  # nothing is left to be saved; SIGTERM would wait for the end of what it does


def leave_quickly() -> None:
    """Exit, when it comes to that, without taking the interpreter apart."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    atexit.register(leave)
