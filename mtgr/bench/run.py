"""A run: the parts of one or more plans, one after the other, none of them in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mtgr.bench.plan import Plan
from mtgr.bench.records import Device, Record, read_records
from mtgr.bench.sections import CHECKPOINT, NEED_CHECKPOINT, SECTIONS, run_section

ONCE: tuple[str, ...] = ("ceilings",)
"""Parts that are of the device, whatever the model."""


def parts(device: Device, only: Sequence[str] = ()) -> list[str]:
    """The parts to run, in order: those of the device, or those asked for and the checkpoint where they need it."""
    wanted = set(only) or {name for name, section in SECTIONS.items() if device in section.devices}
    if wanted & NEED_CHECKPOINT:
        wanted.add(CHECKPOINT)
    return [name for name in SECTIONS if name in wanted]


def run(
    plans: Sequence[Plan], names: Sequence[str], limit: float, say: Callable[[str], None]
) -> list[Record]:
    """Measure, for at most so many seconds, and return what was found; the plans' file has it as it comes."""
    began = time.monotonic()
    out = plans[0].out
    already = len(_records(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    for number, plan in enumerate(plans):
        for name in names:
            if number and name in ONCE:
                continue
            started = time.monotonic()
            reason = run_section(name, plan, limit - (started - began))
            took = time.monotonic() - started
            say(f"{plan.preset} {name}: {took:.0f} s{'' if reason is None else ', ' + reason}")
    return _records(out)[already:]


def _records(path: Path) -> list[Record]:
    return list(read_records([path])) if path.exists() else []
