"""What the processor of this machine calls itself."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The model's name as Linux tells it, or what Python knows where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
