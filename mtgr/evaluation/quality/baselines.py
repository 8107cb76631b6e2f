"""Runs of the baselines: fitted in their own environment on the split that ours are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from mtgr.evaluation.baselines import BaselineLists, BaselineOptions, read_lists, run_baselines, write_task
from mtgr.evaluation.baselines.launch import OnEvent
from mtgr.evaluation.evaluation import Evaluation
from mtgr.evaluation.protocol import Split
from mtgr.evaluation.quality.data_sets import DataSet, Loaded
from mtgr.evaluation.quality.ours import COLD_ITEMS, cases_digest
from mtgr.evaluation.quality.rendering import NEEDS_TIMES, Searched
from mtgr.evaluation.quality.runs import BEYOND, Run
from mtgr.evaluation.rankings import rank_lists

DETERMINISTIC: Final = ("popularity", "recent-popularity", "item-knn")
"""Baselines that one seed says all of."""

SEARCHED: Final = Path(__file__).with_name("searched.json")
"""Data set -> baseline -> the candidates that a search has tried, the best first."""

_KS: Final = (5, 10)


def baselines_of(chosen: DataSet, names: Sequence[str]) -> list[str]:
    """Those of the baselines that the data set has use for: without times nothing is recent."""
    return [name for name in names if chosen.times or name not in NEEDS_TIMES]


def seeds_of(name: str, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that a baseline is fitted with."""
    return seeds[:1] if name in DETERMINISTIC else seeds


def run_baseline_systems(
    chosen: DataSet,
    loaded: Loaded,
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    work: Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    jobs: int = 1,
    search: bool = False,
    on_event: OnEvent = lambda event: None,
    environment: Path | None = None,
) -> Iterator[Run]:
    """Fit baselines and rank the test cases by them; what `work` holds already is not fitted again.

    search: whether settings are searched again; else those of `SEARCHED` are taken where there are some.
    `write_task` says what the models learn. Raises InputError as `run_baselines` does.
    """
    split = chosen.protocol.split(loaded.log)
    task, out = work / "task", work / "fits"
    write_task(task, split, chosen.protocol, times=chosen.times)
    known = [] if search else _take_searched(chosen.name, names, out)
    for searched, group in ((False, known), (True, [name for name in names if name not in known])):
        if group:
            options = BaselineOptions(
                models=tuple(group), seeds=tuple(seeds), device=device, jobs=jobs, search=searched
            )
            run_baselines(task, out, options, on_event, environment)
    evaluation = Evaluation(split, _catalog(split, loaded), _KS, cold_items=COLD_ITEMS)
    for name in names:
        for seed in seeds_of(name, seeds):
            yield judged(chosen, evaluation, read_lists(out, name, seed))


def judged(chosen: DataSet, evaluation: Evaluation, fitted: BaselineLists) -> Run:
    """The run of a fitted baseline."""
    lists = [fitted.lists.get(case.user_id, []) for case in evaluation.cases]
    length = max(_KS[-1], *(len(items) for items in lists))
    rankings = rank_lists(evaluation.cases, lists, None, evaluation.items.index_of, length)
    system = evaluation.judge(fitted.model, rankings)
    return Run(
        data_set=chosen.name,
        system=fitted.model,
        seed=fitted.seed,
        cases=cases_digest(evaluation.table),
        ranks=[BEYOND if rank is None else rank for rank in system.ranks],
        coverage=system.lists.coverage[_KS[-1]],
        cold=np.flatnonzero(np.array(evaluation.table.target_popularity) < COLD_ITEMS).tolist(),
        seconds=fitted.seconds,
        machine=fitted.device,
        date=fitted.facts["date"],
        settings=fitted.settings,
        facts={name: fitted.facts[name] for name in ("epochs", "ending", "validation", "environment")},
    )


def read_searched() -> Searched:
    """What `SEARCHED` holds."""
    searched: Searched = msgspec.json.decode(SEARCHED.read_bytes())
    return searched


def _take_searched(data_set: str, names: Sequence[str], out: Path) -> list[str]:
    """Put what earlier searches have found where the runner looks for it; the baselines that it has now."""
    out.mkdir(parents=True, exist_ok=True)
    searched = read_searched()
    for name, tried in searched.get(data_set, {}).items():
        path = out / f"{name}.search.json"
        if not path.exists():
            path.write_bytes(msgspec.json.encode(tried))
    return [name for name in names if name in searched.get(data_set, {})]


def _catalog(split: Split, loaded: Loaded) -> list[str]:
    """The videos that ours can recommend: those learnt from, and those that something is known of."""
    learnt = {video for history in split.known.values() for video in history.video_ids}
    return sorted(learnt | set(loaded.videos))
