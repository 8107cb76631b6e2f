"""One fit: a candidate, scored on the validation cases, or a final model, whose lists are wanted."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytorch_lightning as lightning
import torch

from .counting import Neighbours, Popularity
from .ranking import SELECT_AT, Scorer, quality, top_k
from .search import DETERMINISTIC, Settings
from .task import Task, read_task
from .transformers import fit_transformer


@dataclass(frozen=True)
class Fit:
    """What to fit, on what, and where a final model's lists go."""

    task: Path
    out: Path
    model: str
    settings: Settings
    seed: int
    device: str
    threads: int
    k: int
    seconds: float  # a training stops after so many, with its best weights so far
    final: bool = False
    epochs: int | None = None  # for exactly so many, where the training part holds the validation cases

    @property
    def name(self) -> str:
        """What the results' files are called."""
        return f"{self.model}-{self.seed}"


def run_fit(fit: Fit) -> dict[str, Any]:
    """Fit, score and, if final, write the lists; what was found, as JSON can hold it."""
    quieten()
    torch.set_num_threads(fit.threads)
    if fit.device == "cuda":
        torch.set_float32_matmul_precision("high")
    lightning.seed_everything(fit.seed, verbose=False)
    task = read_task(fit.task)
    frame = task.training if fit.final or task.selection is None else task.selection
    fallback = Popularity(task.items, frame, {"events": "all"}).counts

    def measure(scorer: Scorer) -> dict[str, float]:
        assert task.validation.targets is not None
        lists = top_k(scorer, task.validation, SELECT_AT, exclude_seen=task.exclude_seen, fallback=fallback)
        return quality(lists, task.validation.targets)

    def report(**facts: Any) -> None:
        say("epoch", model=fit.model, seed=fit.seed, settings=fit.settings, **facts)

    scorer: Scorer
    epochs, ending = 0, "epochs"
    started = time.perf_counter()
    if fit.model in DETERMINISTIC:
        kind = Neighbours if fit.model == "item-knn" else Popularity
        scorer = kind(task.items, frame, fit.settings)
        seconds = time.perf_counter() - started
        validation = {} if fit.final and task.selection is not None else measure(scorer)
    else:
        scorer, validation, epochs, ending = fit_transformer(
            fit.model,
            task,
            frame,
            fit.settings,
            device=fit.device,
            measure=measure,
            report=report,
            epochs=fit.epochs,
            seconds=fit.seconds,
        )
        seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "model": fit.model,
        "seed": fit.seed,
        "settings": fit.settings,
        "validation": validation,
        "epochs": epochs,
        "ending": ending,
        "seconds": {"fit": round(seconds, 3)},
    }
    if fit.final:
        asked = time.perf_counter()
        lists = top_k(scorer, task.test, fit.k, exclude_seen=task.exclude_seen, fallback=fallback)
        result["seconds"]["recommend"] = round(time.perf_counter() - asked, 3)
        result["environment"] = _environment(fit.device)
        result["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        _write_lists(fit.out / f"{fit.name}.parquet", task, lists)
        write_json(fit.out / f"{fit.name}.json", result)
    return result


def say(event: str, **facts: Any) -> None:
    """One line of progress."""
    print(json.dumps({"event": event, **facts}), flush=True)  # noqa: T201


def write_json(path: Path, value: Any) -> None:
    """Write a file that a reader sees whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)


def quieten() -> None:
    """Keep the advice of Lightning and RecTools off the output."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _write_lists(path: Path, task: Task, lists: npt.NDArray[np.int32]) -> None:
    """One row a test case: user, items (best first)."""
    names = [task.items[row[row >= 0]].tolist() for row in lists]
    partial = path.with_suffix(".partial")
    pd.DataFrame({"user": task.test.users, "items": names}).to_parquet(partial, compression="zstd")
    partial.replace(path)


def _environment(device: str) -> dict[str, str]:
    """What the seconds were measured on."""
    named = ("rectools", "torch", "numpy", "pytorch-lightning", "pm-implicit")
    machine = f"one {torch.cuda.get_device_name()}" if device == "cuda" else _processor()
    return {"device": machine, **{name: version(name) for name in named}}


def _processor() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{os.cpu_count()} cores of {name}"
