"""The parts of a run, each a process of its own with a time limit: one that fails or hangs takes no other with it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from mtgr.bench.plan import Plan, decode_plan, encode_plan
from mtgr.bench.records import Device, Finished, Missing, RecordFile

CHECKPOINT: Final = "checkpoint"

_TAIL_BYTES: Final = 6000
_ERROR: Final = re.compile(r"[\w.]*(Error|Exception|Failed|Interrupt)\b.*")


class Section(Struct, frozen=True):
    """A part of a run: what measures it, by its path, since nothing of torch is imported before it is wanted."""

    function: str
    seconds: float
    """After so long it is given up."""
    devices: tuple[Device, ...] = ("cuda",)
    """Where it is measured unless asked for by name."""


SECTIONS: Final[Mapping[str, Section]] = {
    # in the order of their importance: what a short slot has no time for is what it can best be without
    "ceilings": Section("mtgr.bench.ceilings:run", 90, ("cuda", "cpu")),
    CHECKPOINT: Section("mtgr.bench.checkpoints:run", 200, ("cuda", "cpu")),
    "plain": Section("mtgr.bench.plain:run", 900, ("cpu",)),
    "ours": Section("mtgr.bench.ours:run", 240),
    "llama": Section("mtgr.bench.llama:run_fresh", 200),
    "llama-cached": Section("mtgr.bench.llama:run_cached", 200),
    "layers": Section("mtgr.bench.layers:run", 120),
    "padded": Section("mtgr.bench.padded:run_eager", 100),
    "llama-load": Section("mtgr.bench.llama:run_load", 150),
    "padded-compiled": Section("mtgr.bench.padded:run_compiled", 150),
}


NEED_CHECKPOINT: Final = frozenset({"plain", "ours", "padded", "padded-compiled"})
"""Parts that serve a checkpoint, which is made before them."""


def run_section(name: str, plan: Plan, seconds_left: float) -> str | None:
    """Measure one part in a process of its own; why not, if it came to nothing or only to a part."""
    section = SECTIONS[name]
    limit = min(section.seconds, seconds_left)
    if limit < 10:
        return _missed(plan, name, "the run's time was up before it began")
    began = time.monotonic()
    log = plan.out.with_suffix(".log")
    arguments = [sys.executable, "-m", "mtgr.bench.sections", name, encode_plan(plan)]
    with log.open("ab") as output:
        child = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_group(child)
    if status == 0:
        RecordFile(plan.out).add(Finished(plan.device, plan.preset, name, time.monotonic() - began))
        return None
    if status is None:
        return _missed(plan, name, f"given up after {limit:.0f} seconds")
    return _missed(plan, name, f"exit code {status}: {_complaint(log)}")


def _missed(plan: Plan, name: str, reason: str) -> str:
    RecordFile(plan.out).add(Missing(plan.device, plan.preset, name, reason))
    return reason


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End the process and all it has started, and wait: the next part shall have the device to itself."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
    child.wait()


def _complaint(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def main(arguments: Sequence[str]) -> None:
    """Be the process of one part."""
    name, plan_json = arguments
    plan = decode_plan(plan_json)
    if importlib.util.find_spec("flashinfer") is None:
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    module, _, function = SECTIONS[name].function.partition(":")
    measure: Any = getattr(importlib.import_module(module), function)
    measure(plan, RecordFile(plan.out))


if __name__ == "__main__":
    main(sys.argv[1:])
