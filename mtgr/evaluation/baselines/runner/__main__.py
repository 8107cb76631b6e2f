"""`python -m runner TASK OUT`: choose each model's settings, fit it once a seed, and write its lists.

OUT gets, for each model, MODEL.search.json (every candidate and its validation score) and, for each seed,
MODEL-SEED.json and MODEL-SEED.parquet. What OUT already holds is not computed again. Progress is one JSON object a
line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .fits import Fit, quieten, run_fit, say, write_json
from .ranking import SELECT_AT
from .search import AXES, DETERMINISTIC, Settings, axes_of, combined, first_candidates
from .task import Task, read_task


def main() -> None:
    """Read the arguments and run every model that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default=",".join(AXES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--k", type=int, default=50, help="length of the lists")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="fits at once")
    parser.add_argument(
        "--search", action="store_true", help="try all candidates, not the starting point alone"
    )
    parser.add_argument("--fit-seconds", type=float, default=float("inf"), help="longest training of one fit")
    options = parser.parse_args()
    quieten()
    models = options.models.split(",")
    if unknown := [model for model in models if model not in AXES]:
        sys.exit(f"runner: {unknown[0]} is no model: there are {', '.join(AXES)}")
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    task = read_task(options.task)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    fits = {
        model: Fit(
            options.task,
            options.out,
            model,
            {},
            seeds[0],
            device,
            threads,
            options.k,
            options.fit_seconds,
        )
        for model in models
    }
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        tried = search(pool, fits, task, every=options.search)
        finish(pool, fits, tried, task, seeds)


def search(
    pool: ProcessPoolExecutor, fits: dict[str, Fit], task: Task, *, every: bool
) -> dict[str, list[dict[str, Any]]]:
    """Score the candidates of all models at once: model -> what was found, the best first."""
    axes = {model: axes_of(model, task) for model in fits}
    tried = {model: _read_tried(fit) for model, fit in fits.items()}
    if chosen := {model: results for model, results in tried.items() if results and not every}:
        fits = {model: fit for model, fit in fits.items() if model not in chosen}
    first = {model: first_candidates(model, axes[model]) for model in fits}
    _try(pool, fits, {model: some if every else some[:1] for model, some in first.items()}, tried)
    if every:
        _try(pool, fits, {model: [combined(axes[model], tried[model])] for model in fits}, tried)
    return tried


def finish(
    pool: ProcessPoolExecutor,
    fits: dict[str, Fit],
    tried: dict[str, list[dict[str, Any]]],
    task: Task,
    seeds: Sequence[int],
) -> None:
    """Fit the best settings of each model once a seed.

    Candidates that learnt from less than the training part say how long to train on all of it; else the
    validation cases say again when to stop.
    """
    wanted = []
    for model, fit in fits.items():
        best = tried[model][0]
        epochs = (best["epochs"] or None) if task.selection is not None else None
        for seed in seeds[:1] if model in DETERMINISTIC else seeds:
            final = replace(fit, settings=best["settings"], seed=seed, final=True, epochs=epochs)
            if not (fit.out / f"{final.name}.json").exists():
                wanted.append(final)
    wanted.sort(key=lambda final: final.seed)  # every model once, before any a second time
    for done in as_completed([pool.submit(run_fit, final) for final in wanted]):
        say("fitted", **done.result())


def _try(
    pool: ProcessPoolExecutor,
    fits: dict[str, Fit],
    candidates: dict[str, list[Settings]],
    tried: dict[str, list[dict[str, Any]]],
) -> None:
    """Score the candidates that were not tried before, and keep what was found after each."""
    asked: list[Future[dict[str, Any]]] = []
    for model, some in candidates.items():
        known = [result["settings"] for result in tried[model]]
        asked += [
            pool.submit(run_fit, replace(fits[model], settings=settings))
            for settings in some
            if settings not in known
        ]
    for done in as_completed(asked):
        result = done.result()
        results = tried[result["model"]]
        results.append(result)
        results.sort(key=lambda each: -each["validation"][f"ndcg@{SELECT_AT}"])
        write_json(_tried_path(fits[result["model"]]), results)
        say("tried", **result)


def _read_tried(fit: Fit) -> list[dict[str, Any]]:
    path = _tried_path(fit)
    return json.loads(path.read_text()) if path.exists() else []


def _tried_path(fit: Fit) -> Path:
    return fit.out / f"{fit.model}.search.json"


if __name__ == "__main__":
    main()
