"""A task: what may be learnt from, the cases to choose settings by, and the cases whose lists are wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cases:
    """Users to recommend to: what each has watched, oldest first, and when the list is asked for."""

    users: list[str]
    histories: list[Integers]  # item numbers
    times_ms: list[Integers]
    weights: list[Floats]  # 1 where the event is of the kind that is to be predicted
    asked_ms: Integers  # (cases,)
    targets: (
        Integers | None
    )  # (cases,) item numbers, -1 for an item that training never saw; None for the test

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True, eq=False)
class Task:
    """One data set and its split; `selection` is what candidates learn from where that is less than `training`."""

    items: npt.NDArray[Any]  # external ids, sorted: an item's number is its place here
    training: pd.DataFrame  # user, item, time_ms, weight
    selection: pd.DataFrame | None
    validation: Cases
    test: Cases
    exclude_seen: bool
    times: bool  # whether time_ms are times, and not only an order

    @property
    def weighted(self) -> bool:
        """Whether some events are not of the kind that is to be predicted."""
        return bool((self.training["weight"] < 1).any())


def read_task(directory: Path) -> Task:
    """The task that a folder holds: task.json, training, selection (where there is one), validation and test."""
    facts = json.loads((directory / "task.json").read_text())
    training = pd.read_parquet(directory / "training.parquet")
    selection = directory / "selection.parquet"
    items = np.unique(training["item"].to_numpy(dtype=object))
    numbers = {item: number for number, item in enumerate(items)}
    return Task(
        items=items,
        training=training,
        selection=pd.read_parquet(selection) if selection.exists() else None,
        validation=_read_cases(directory / "validation.parquet", numbers),
        test=_read_cases(directory / "test.parquet", numbers),
        exclude_seen=bool(facts["exclude_seen"]),
        times=bool(facts["times"]),
    )


def dataset_of(frame: pd.DataFrame, events: str) -> Dataset:
    """RecTools' data set: `all` events alike, `weighted` ones, or those of the predicted kind (`targets`) alone."""
    if events == "targets":
        frame = frame[frame["weight"] >= 1]
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: frame["user"],
                Columns.Item: frame["item"],
                Columns.Weight: frame["weight"] if events == "weighted" else 1.0,
                Columns.Datetime: pd.to_datetime(frame["time_ms"], unit="ms"),
            }
        )
    )


def _read_cases(path: Path, numbers: dict[str, int]) -> Cases:
    frame = pd.read_parquet(path)
    histories, times_ms, weights = [], [], []
    for items, times, kinds in zip(frame["history"], frame["times_ms"], frame["weights"], strict=True):
        history = np.array([numbers.get(item, -1) for item in items], dtype=np.int64)
        known = history >= 0
        histories.append(history[known])
        times_ms.append(np.asarray(times, dtype=np.int64)[known])
        weights.append(np.asarray(kinds, dtype=np.float64)[known])
    targets = None
    if "target" in frame.columns:
        targets = np.array([numbers.get(item, -1) for item in frame["target"]], dtype=np.int64)
    asked_ms = frame["time_ms"].to_numpy(dtype=np.int64)
    return Cases(frame["user"].tolist(), histories, times_ms, weights, asked_ms, targets)
