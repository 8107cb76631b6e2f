"""What chaos runs came to, for machines as JSON and for people as a section of docs/reliability.md."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from chaos_run import Outcome
from checker import Kind
from observing import quantile

from mtgr.bench.machine import machine
from stream.bench.page import replace_between

BEGIN = "<!-- begin of what make chaos writes -->"
END = "<!-- end of what make chaos writes -->"


def as_record(outcome: Outcome) -> dict[str, Any]:
    """One run as plain values."""
    verdict = outcome.verdict
    return {
        "plan": msgspec.to_builtins(outcome.plan),
        "seconds": round(outcome.seconds, 1),
        "faults": outcome.faults,
        "strikes": msgspec.to_builtins(outcome.strikes),
        "figures": verdict.figures,
        "found": {kind.value: verdict.counts[kind] for kind in Kind},
        "examples": {kind.value: shown for kind, shown in verdict.examples.items()},
        "problems": outcome.problems,
        "skipped": outcome.skipped,
    }


def write_report(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write all runs to a file of JSON."""
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "runs": [as_record(outcome) for outcome in outcomes],
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def write_section(outcomes: Sequence[Outcome], document: Path | None) -> str:
    """The runs as Markdown; it takes the place of the last one in a document, between two comments."""
    text = "\n".join(_lines(outcomes))
    if document is not None:
        replace_between(document, "chaos", f"{BEGIN}\n", END, text)
    return text


def _lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    yield f"{machine()}; load {load} at the end; seed {outcomes[0].plan.seed}."
    yield ""
    yield from _totals(outcomes)
    yield ""
    yield from _by_kind(outcomes)
    skipped = {text for outcome in outcomes for text in outcome.skipped}
    for text in sorted(skipped):
        yield ""
        yield f"Not done: {text}."


def _totals(outcomes: Sequence[Outcome]) -> Iterator[str]:
    rows: list[tuple[str, list[int]]] = [
        ("faults", [outcome.faults for outcome in outcomes]),
        ("records sent", [outcome.verdict.figures["records"] for outcome in outcomes]),
        ("of them events that count", [outcome.verdict.figures["events"] for outcome in outcomes]),
        ("lists", [outcome.verdict.figures["lists"] for outcome in outcomes]),
        ("**lost**", [outcome.verdict.counts[Kind.LOST] for outcome in outcomes]),
        ("**out of order**", [outcome.verdict.counts[Kind.OUT_OF_ORDER] for outcome in outcomes]),
        ("**duplicates**", [outcome.verdict.counts[Kind.DUPLICATE] for outcome in outcomes]),
        ("older than what another owner had published", [o.verdict.counts[Kind.REWOUND] for o in outcomes]),
        ("of another history than the pure fold's", [o.verdict.counts[Kind.WRONG] for o in outcomes]),
        ("of a fenced daemon", [outcome.verdict.counts[Kind.FENCED] for outcome in outcomes]),
        ("made and aborted, seen by nobody", [o.verdict.figures.get("lists_aborted", 0) for o in outcomes]),
        ("states that are not the fold", [outcome.verdict.counts[Kind.STATE] for outcome in outcomes]),
        ("states set back, and mended", [outcome.verdict.counts[Kind.SET_BACK] for outcome in outcomes]),
        ("offsets past durable state", [outcome.verdict.counts[Kind.OFFSET] for outcome in outcomes]),
        ("moments at which that was looked at", [o.verdict.figures["offset_samples"] for o in outcomes]),
        ("daemons that ended by themselves", [len(outcome.ended_by_themselves) for outcome in outcomes]),
    ]
    names = [outcome.plan.delivery.replace("_", " ") for outcome in outcomes]
    yield f"| | {' | '.join(names)} |"
    yield f"|---|{'---|' * len(names)}"
    for name, values in rows:
        yield f"| {name} | {' | '.join(f'{value:,}' for value in values)} |"
    minutes = [f"{outcome.seconds / 60:.1f}" for outcome in outcomes]
    yield f"| minutes | {' | '.join(minutes)} |"


def _by_kind(outcomes: Sequence[Outcome]) -> Iterator[str]:
    silences: dict[str, list[float]] = {}
    recoveries: dict[str, list[float]] = {}
    counts: dict[str, int] = {}
    for strike in (strike for outcome in outcomes for strike in outcome.strikes):
        for kind in strike.kinds:
            counts[kind] = counts.get(kind, 0) + 1
        name = strike.kinds[0] if len(strike.kinds) == 1 else "two at once"
        silences.setdefault(name, []).append(strike.silence_seconds)
        recoveries.setdefault(name, []).append(strike.seconds)
    yield "| fault | times | alone | no new list for, p50 | longest | all as it should be after, p50 | longest |"
    yield "|---|---|---|---|---|---|---|"
    for name in [*sorted(counts), *(["two at once"] if "two at once" in silences else [])]:
        alone, times = silences.get(name, []), counts.get(name, len(silences.get(name, [])))
        yield (
            f"| {name} | {times} | {len(alone)} | {quantile(alone, 0.5):.1f} s | {max(alone, default=0):.1f} s | "
            f"{quantile(recoveries.get(name, []), 0.5):.1f} s | {max(recoveries.get(name, []), default=0):.1f} s |"
        )
