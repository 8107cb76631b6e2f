"""All that one evaluation found, as data: figures, and the ranks that other systems can be compared by."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from mtgr.errors import InputError
from mtgr.evaluation.evaluation import CaseTable, SystemResult
from mtgr.evaluation.impressions import HeadResult
from mtgr.evaluation.intervals import Interval
from mtgr.evaluation.protocol import Protocol
from mtgr.evaluation.served import ListComparison
from schemas.lists import ModelVersion


class LogFacts(Struct, frozen=True):
    """What was evaluated on."""

    users: int
    events: int
    videos: int
    known_events: int
    """Those before the test, of which popularity is counted."""


class EvaluationReport(Struct, frozen=True, kw_only=True):
    """One run of `mtgr-stream evaluate`."""

    model: ModelVersion
    protocol: Protocol
    ks: tuple[int, ...]
    seed: int
    cold_items: int
    cold_users: int
    log: LogFacts
    catalog: int
    """Videos that were ranked."""
    missing_targets: int
    """Targets that are not in the catalog and count as misses."""
    cases: CaseTable
    systems: list[SystemResult]
    """The evaluated model first."""
    differences: dict[str, dict[str, Interval]]
    """The evaluated model against each other system, paired by user."""
    comparison: ListComparison | None = None
    """The lists of vLLM against those of the reference."""
    heads: dict[str, HeadResult] = {}
    """The ranking heads, of a model that has some and a split by time."""


def save_report(path: Path, report: EvaluationReport) -> None:
    """Write a report as JSON; InputError if that cannot be."""
    try:
        path.write_bytes(msgspec.json.encode(report) + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def read_report(path: str | os.PathLike[str]) -> EvaluationReport:
    """Read what `save_report` wrote; InputError names the file and what is wrong with it."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=EvaluationReport)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a report of an evaluation: {error}") from None
