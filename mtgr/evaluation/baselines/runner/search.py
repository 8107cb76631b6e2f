"""Settings: which are tried for each model, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Final

from .ranking import SELECT_AT
from .task import Task

Settings = dict[str, Any]

DETERMINISTIC: Final = ("popularity", "recent-popularity", "item-knn")

AXES: Final[dict[str, dict[str, list[Any]]]] = {
    "popularity": {"events": ["all", "targets"]},
    "recent-popularity": {"events": ["all", "targets"], "days": [7, 1, 2, 3, 14, 30]},
    "item-knn": {
        "events": ["all", "targets"],
        "similarity": ["cosine", "tfidf", "bm25"],
        "neighbours": [100, 20, 50, 200, 500],
    },
    "sasrec": {
        "events": ["all", "weighted", "targets"],
        "n_factors": [128, 64, 256],
        "dropout_rate": [0.3, 0.1, 0.5],
        "session_max_len": [50, 100],
    },
    "hstu": {
        "events": ["all", "weighted", "targets"],
        "n_factors": [128, 64, 256],
        "dropout_rate": [0.3, 0.1, 0.5],
        "session_max_len": [50, 100],
        "n_blocks": [2, 4],
        "logits_t": [0.05, 0.1],
        "relative_time_attention": [True, False],
    },
}
"""What may be chosen, the starting value first. `events`: what a model learns from (task.dataset_of)."""


def axes_of(model: str, task: Task) -> dict[str, list[Any]]:
    """The axes that make a difference for this task."""
    axes = dict(AXES[model])
    if not task.weighted:
        axes["events"] = ["all"]
    if not task.times and "relative_time_attention" in axes:
        axes["relative_time_attention"] = [False]
    if "session_max_len" in axes:
        shortest, *longer = axes["session_max_len"]
        share = float((task.training.groupby("user").size() > shortest).mean())
        axes["session_max_len"] = [shortest, *longer] if share > 0.05 else [shortest]
    return axes


def first_candidates(model: str, axes: dict[str, list[Any]]) -> list[Settings]:
    """The whole grid where a fit takes a second; else the starting point and every single change of it."""
    start = {axis: values[0] for axis, values in axes.items()}
    if model in DETERMINISTIC:
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    changes = [start | {axis: value} for axis, values in axes.items() for value in values[1:]]
    return [start, *changes]


def combined(axes: dict[str, list[Any]], tried: Sequence[dict[str, Any]]) -> Settings:
    """Of each axis the value that was best by itself."""
    start = {axis: values[0] for axis, values in axes.items()}
    chosen = dict(start)
    for axis, values in axes.items():
        found = {value: score(tried, start | {axis: value}) for value in values}
        chosen[axis] = max(values, key=lambda value: found[value])
    return chosen


def score(tried: Sequence[dict[str, Any]], settings: Settings) -> float:
    """The validation NDCG@10 that these settings reached, -1 where they were not tried."""
    for result in tried:
        if result["settings"] == settings:
            return float(result["validation"][f"ndcg@{SELECT_AT}"])
    return -1.0
