"""Functions that numba compiles once for a machine, and loads from its cache on the disk from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numba

inlined: Final[Callable[[Any], Any]] = numba.njit(error_model="numpy", nogil=True)
"""Makes a function part of what compiled functions call; nothing of it is kept on the disk by itself."""


def compile_now(
    entry: Callable[[str], Callable[..., Any]], modules: Sequence[ModuleType], use: Callable[[Any], object]
) -> Any:
    """The function that `entry` makes, compiled: in a second or some, or at once where that was done before.

    entry: is given what stands for the code of `modules`, all whose functions it calls, and closes over it: numba's
    cache knows a function's own file and what it closes over, and would take what it has for what it is asked for.
    use: calls the function once, with arguments of the types that it will get.
    """
    sources = hashlib.sha256(
        b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    ).hexdigest()
    try:
        function = numba.njit(error_model="numpy", nogil=True, cache=True)(entry(sources))
        use(function)
    except (RuntimeError, OSError):  # there is no folder that numba can write to
        function = inlined(entry(sources))
        use(function)
    return function
