"""The engine beside plain torch on this machine's processor: `mtgr.bench` has the measuring, this the table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from mtgr.bench.aims import ratio
from mtgr.bench.cases import CPU_CASES
from mtgr.bench.plan import DEFAULT_PRESETS, Plan
from mtgr.bench.records import Missing
from mtgr.bench.results import Results
from mtgr.bench.run import parts
from mtgr.bench.run import run as run_parts

_LIMIT_SECONDS: Final = 1200.0
_REPEATS: Final = 7


def run(out: Path) -> Results:
    """Measure fresh and cached lists of the tiny and the small preset; the records are appended to `out`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        plans = [
            Plan(
                device="cpu",
                preset=name,
                dtype="float32",
                cases=CPU_CASES,
                repeats=_REPEATS,
                directory=Path(scratch),
                out=out.absolute(),
                command="make bench",
            )
            for name in DEFAULT_PRESETS["cpu"]
        ]
        return Results(run_parts(plans, parts("cpu"), _LIMIT_SECONDS, lambda _: None))


def table(results: Results) -> Table:
    """A row for each model and case, and below them what is missing."""
    shown = Table(title="Lists of 10 with features, engine against plain torch, median ms of a batch")
    for column in (
        "model",
        "users x events",
        "engine",
        "plain torch",
        "plain torch / engine",
        "lists/s, engine",
    ):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for setting in results.settings("cpu"):
        for case in results.cases(setting):
            ours, theirs = (results.row(setting, system, case) for system in ("ours", "torch"))
            if ours is None or theirs is None:
                continue
            shown.add_row(
                setting.preset,
                case.title,
                f"{ours.median:,.1f}",
                f"{theirs.median:,.1f}",
                f"{ratio(results, setting, case, 'torch'):.2f}x",
                f"{1000 * case.users / ours.median:,.0f}",
            )
    missing: Sequence[Missing] = results.missing("cpu")
    if missing:
        shown.caption = "; ".join(f"{one.preset}, {one.what}: {one.reason}" for one in missing)
    return shown
