"""Compiled functions on the threads that torch computes with, so that the two never fight over the cores."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_Run = Callable[[int, int, int], None]


def run_on_threads(function: int, argument: int, threads: int) -> None:
    """Let so many threads, this one among them, each call the C function `void (void *)` with the same argument.

    function, argument: addresses. Returns when all have returned. The threads are torch's own, of its OpenMP library:
    they are pinned and awake already. Where torch computes with something else, they are started for the call.
    """
    _runner()(function, argument, threads)


@functools.cache
def _runner() -> _Run:
    # in the linker's own order: what is preloaded or global, then what torch depends on
    for library in (None, str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")):
        try:
            gomp_parallel = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        gomp_parallel.restype = None
        gomp_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        return functools.partial(_on_openmp, gomp_parallel)
    return _on_started_threads


def _on_openmp(gomp_parallel: Any, function: int, argument: int, threads: int) -> None:
    gomp_parallel(function, argument, threads, 0)


def _on_started_threads(function: int, argument: int, threads: int) -> None:
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)  # lets go of the interpreter's lock meanwhile
    others = [threading.Thread(target=call, args=(argument,)) for _ in range(threads - 1)]
    for other in others:
        other.start()
    call(argument)
    for other in others:
        other.join()
