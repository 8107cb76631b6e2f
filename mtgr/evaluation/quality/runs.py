"""One run: a system with a seed on a data set, what it ranked and what that took, as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from mtgr.errors import InputError
from mtgr.processor import processor_name

BEYOND: Final = -1
"""Rank of a target that is not in a list, where a system gives lists and no full ranking."""


class Run(Struct, frozen=True, kw_only=True):
    """What is kept of a run.

    ranks: of each test case's target, from 1, in the order of the cases, BEYOND for one that is not in the lists.
    cases: a digest of the cases, so that runs of different splits are not compared. facts: what else is worth
    telling, such as settings and epochs.
    """

    data_set: str
    system: str
    seed: int
    cases: str
    ranks: list[int]
    coverage: float
    """Share of the catalog that stands in some user's list of 10."""
    cold: list[int]
    """Places of the cases whose target fewer than 5 users knew."""
    seconds: float
    machine: str
    date: str
    settings: dict[str, Any]
    facts: dict[str, Any] = {}

    @property
    def hit_rate(self) -> float:
        """HR@10: the share of the cases whose target is among the best 10."""
        return sum(1 <= rank <= 10 for rank in self.ranks) / len(self.ranks)


def run_path(directory: Path, data_set: str, system: str, seed: int) -> Path:
    """Where a run is kept."""
    return directory / f"{data_set}.{system}.{seed}.json"


def save_run(directory: Path, run: Run) -> None:
    """Keep a run, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = run_path(directory, run.data_set, run.system, run.seed)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(msgspec.json.encode(run) + b"\n")
    part.replace(path)


def read_runs(directory: Path) -> Iterator[Run]:
    """All runs of a directory by name; InputError names a file that is none."""
    for path in sorted(directory.glob("*.json")):
        try:
            yield msgspec.json.decode(path.read_bytes(), type=Run)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a run: {error}") from None


def machine() -> str:
    """What this runs on, in words."""
    import torch

    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores of {processor_name()}"
