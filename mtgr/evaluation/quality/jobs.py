"""Runs of ours as jobs for processes of their own, which import this module and not the command."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, NamedTuple

from mtgr.evaluation.quality.data_sets import Loaded, data_set
from mtgr.evaluation.quality.prepared import read_prepared
from mtgr.evaluation.quality.runs import Run

Device = Literal["auto", "cpu", "cuda"]


class Task(NamedTuple):
    """One run of ours that is wanted."""

    prepared: Path
    data_set: str
    system: str
    seed: int
    device: Device
    threads: int


@functools.lru_cache(maxsize=1)
def _loaded(prepared: Path) -> Loaded:
    return read_prepared(prepared)


def run_task(task: Task) -> Run:
    """Do a job in this process, with its share of the threads."""
    import torch

    from mtgr.evaluation.quality.ours import run_ours

    torch.set_num_threads(task.threads)
    return run_ours(
        data_set(task.data_set), _loaded(task.prepared), task.system, task.seed, device=task.device
    )
