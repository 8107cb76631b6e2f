"""docs/quality.md from the runs and the search alone: the same files give the same page, wherever they were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mtgr.errors import InputError
from mtgr.evaluation.intervals import Interval, bootstrap, paired_difference
from mtgr.evaluation.metrics import case_metrics
from mtgr.evaluation.protocol import LeaveOneOut
from mtgr.evaluation.quality.data_sets import DATA_SETS, DataSet
from mtgr.evaluation.quality.runs import BEYOND, Run
from mtgr.evaluation.quality.variants import OURS, VARIANTS

BASELINES: Final[Mapping[str, str]] = {
    "popularity": "most popular",
    "recent-popularity": "most popular lately",
    "item-knn": "item-kNN",
    "sasrec": "SASRec",
    "hstu": "HSTU",
}
"""Systems from RecTools, as the table has them."""

NEEDS_TIMES: Final = ("recent-popularity",)
"""Baselines that a log without times has no use for."""

KS: Final = (5, 10)
_COLUMNS: Final = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
_HEADER: Final = """\
# Quality

How good the lists are on public logs, beside the field's baselines. `make quality` trains, evaluates and writes this
page from the runs it finds in `.run/quality`; a run that is there is not computed again.

Every figure is of a full ranking of the whole catalog, never of sampled negatives. There is one target for each user,
so that HR@k is Recall@k. A system with several seeds is judged by each user's mean over them; in brackets stands the
95 % percentile interval of a bootstrap over users (1,000 resamples). Baselines are those of RecTools, their settings
searched on the validation part; ours were chosen on the same part. Baselines see ids only: which videos a user met,
when, and whether by an event of the kind that is predicted, but no attributes of videos or users, which ours has; the
variants without attributes show what these are worth.
"""

Searched = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Data set -> baseline -> the candidates that a search has tried, as the runner keeps them."""

SEARCH_SECONDS: Final = 60
"""What each fit of a search was given on a GPU where it did not record how it ended; looked at after each epoch."""


def render(runs: Iterable[Run], searched: Searched = MappingProxyType({})) -> str:
    """The page, with what a search of the baselines' settings took; InputError if runs of one data set were made for
    different cases.
    """
    by_set: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_set[run.data_set].append(run)
    parts = [_HEADER]
    for name, chosen in DATA_SETS.items():
        if by_set[name]:
            parts.append(_section(chosen, by_set[name], searched.get(name, {})))
    return "\n".join(parts)


def _section(
    chosen: DataSet, runs: Sequence[Run], searched: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    if len({run.cases for run in runs}) > 1:
        raise InputError(
            f"the runs of {chosen.name} are of different test cases: compute them again with --fresh, from one log"
        )
    systems: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        systems[run.system].append(run)
    lines = [f"## {chosen.title}", "", chosen.summary, "", f"{len(runs[0].ranks):,} users are tested.", ""]
    lines += _comparison(chosen, systems)
    if OURS in systems:
        lines += ["", *_verdict(chosen, systems)]
        lines += ["", *_slices(systems)]
        lines += ["", *_ablations(systems)]
    lines += ["", *_baseline_settings(systems)]
    lines += ["", *_search(chosen, searched)]
    lines += ["", *_provenance(systems), ""]
    return "\n".join(line for line, before in zip(lines, ["", *lines], strict=False) if line or before)


def _comparison(chosen: DataSet, systems: Mapping[str, Sequence[Run]]) -> list[str]:
    lines = [
        f"| system | seeds | {' | '.join(_COLUMNS)} | coverage@10 |",
        f"|---|---|{'---|' * len(_COLUMNS)}---|",
    ]
    for name, title in {OURS: "**MTGR, ours**", **BASELINES}.items():
        if name not in systems:
            continue
        found = bootstrap(_values(systems[name]), seed=0)
        cells = " | ".join(_cell(found[column]) for column in _COLUMNS)
        coverage = np.mean([run.coverage for run in systems[name]])
        lines.append(f"| {title} | {len(systems[name])} | {cells} | {coverage:.0%} |")
    for name, recall in chosen.published.items():
        lines.append(f"| {name}, as published | | | {recall:.4f} | | | |")
    return lines


def _verdict(chosen: DataSet, systems: Mapping[str, Sequence[Run]]) -> list[str]:
    """Ours against the best of the others and against the aim, in words that follow from the figures."""
    others = {name: bootstrap(_values(systems[name]), seed=0) for name in BASELINES if name in systems}
    if not others:
        return ["No baseline was run."]
    ours = bootstrap(_values(systems[OURS]), seed=0)
    lines = []
    for column in ("HR@10", "NDCG@10"):
        best = max(others, key=lambda name: others[name][column].value)
        theirs = others[best][column]
        apart = "overlap" if ours[column].overlaps(theirs) else "do not overlap"
        difference = paired_difference(_values(systems[OURS]), _values(systems[best]), seed=0)[column]
        relative = f", {ours[column].value / theirs.value - 1:+.0%}" if theirs.value else ""
        lines.append(
            f"- {column}: {ours[column].value:.4f}{relative} against the best baseline ({BASELINES[best]}, "
            f"{theirs.value:.4f}); the intervals {apart}; paired difference {difference.value:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}]."
        )
    seeds = ", ".join(f"{_values([run])['HR@10'].mean():.4f}" for run in systems[OURS])
    lines.append(f"- HR@10 of our seeds one by one: {seeds}.")
    lines += ["", _aim(chosen, ours["HR@10"], {name: found["HR@10"] for name, found in others.items()})]
    return lines


def _aim(chosen: DataSet, ours: Interval, others: Mapping[str, Interval]) -> str:
    """What was aimed at, and what of it is not reached."""
    asked = [f"HR@10 of at least {chosen.aim:g}"] if chosen.aim is not None else []
    asked.append(
        "ours above every baseline" + (", with intervals that do not overlap" if chosen.apart else "")
    )
    missed = []
    if chosen.aim is not None and ours.value < chosen.aim:
        missed.append(f"HR@10 is {ours.value:.4f}, {chosen.aim - ours.value:.4f} below {chosen.aim:g}")
    for name, theirs in others.items():
        if ours.value <= theirs.value:
            missed.append(f"{BASELINES[name]} has {theirs.value:.4f}, where ours has {ours.value:.4f}")
        elif chosen.apart and ours.overlaps(theirs):
            missed.append(f"the interval overlaps that of {BASELINES[name]}")
    if absent := [
        title for name, title in BASELINES.items() if name not in others and _applies(chosen, name)
    ]:
        missed.append(f"not compared with {', '.join(absent)}")
    aim = f"Aim: {' and '.join(asked)}."
    return f"{aim} **Missed**: {'; '.join(missed)}." if missed else f"{aim} Reached."


def _applies(chosen: DataSet, baseline: str) -> bool:
    return chosen.times or baseline not in NEEDS_TIMES


def _slices(systems: Mapping[str, Sequence[Run]]) -> list[str]:
    cold = np.array(systems[OURS][0].cold, np.int64)
    if not len(cold):
        return []
    lines = [
        f"Cold items, {len(cold):,} users whose target fewer than 5 users knew:",
        "",
        "| system | HR@10 | NDCG@10 |",
        "|---|---|---|",
    ]
    for name, title in {OURS: "MTGR, ours", **BASELINES}.items():
        if name in systems:
            held = {column: values[cold] for column, values in _values(systems[name]).items()}
            found = bootstrap(held, seed=0)
            lines.append(f"| {title} | {_cell(found['HR@10'])} | {_cell(found['NDCG@10'])} |")
    return lines


def _ablations(systems: Mapping[str, Sequence[Run]]) -> list[str]:
    variants = [name for name in VARIANTS if name != OURS and name in systems]
    if not variants:
        return []
    lines = [
        "One thing changed at a time; the difference is paired by user, over the seeds that both have:",
        "",
        "| variant | seeds | HR@10 | NDCG@10 | NDCG@10 against the recipe |",
        "|---|---|---|---|---|",
    ]
    seeds_of = {run.seed: run for run in systems[OURS]}
    for name in variants:
        runs = systems[name]
        found = bootstrap(_values(runs), seed=0)
        paired = [run for run in runs if run.seed in seeds_of]
        told = "-"
        if paired:
            base = _values([seeds_of[run.seed] for run in paired])
            difference = paired_difference(_values(paired), base, seed=0)["NDCG@10"]
            told = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        lines.append(
            f"| {VARIANTS[name].title} | {len(runs)} | {_cell(found['HR@10'])} | {_cell(found['NDCG@10'])} | {told} |"
        )
    heads = {
        head: f"{result['gauc']['value']:.4f}" if result["gauc"] else "has no user with both outcomes"
        for run in systems.get("ranking-heads", [])[:1]
        for head, result in run.facts.get("heads", {}).items()
    }
    if heads:
        told = ", ".join(f"{head} {text}" for head, text in heads.items())
        lines += ["", f"GAUC of the ranking heads on the impressions after the cut: {told}."]
    return lines


def _baseline_settings(systems: Mapping[str, Sequence[Run]]) -> list[str]:
    lines = []
    for name, title in BASELINES.items():
        if name in systems:
            run = systems[name][0]
            settings = ", ".join(f"{key} {value}" for key, value in run.settings.items())
            epochs = sorted({run.facts["epochs"] for run in systems[name]} - {0})
            told = f"; epochs {', '.join(map(str, epochs))}" if epochs else ""
            late = sum(run.facts.get("ending") == "time" for run in systems[name])
            told += (
                f"; {late} of {len(systems[name])} seeds stopped by a time limit, not by their score"
                if late
                else ""
            )
            lines.append(f"- {title}: {settings}{told}")
    return ["Settings of the baselines, by RecTools' names:", "", *lines] if lines else []


def _search(chosen: DataSet, searched: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """How many settings of the trained baselines were tried, and what ended their fits: their score or the clock."""
    trained = {name: [one for one in tried if one["epochs"]] for name, tried in searched.items()}
    fits = [one for tried in trained.values() for one in tried]
    if not fits:
        return []
    counts = " and ".join(f"{len(tried)} of {BASELINES[name]}" for name, tried in trained.items() if tried)
    seconds = [one["seconds"]["fit"] for one in fits]
    epochs = [one["epochs"] for one in fits]
    took = f"their fits took {min(seconds):.0f} to {max(seconds):.0f} s on a GPU"
    if all("ending" in one for one in fits):
        late = sum(one["ending"] == "time" for one in fits)
        ended = f"{took}, and {late} of {len(fits)} were stopped by a time limit, not by their score"
    else:
        late = sum(each >= SEARCH_SECONDS for each in seconds)
        ended = (
            f"each fit was given about {SEARCH_SECONDS} s. {took[0].upper()}{took[1:]}; {late} of {len(fits)} took "
            f"{SEARCH_SECONDS} s or longer, so that these were, as far as the seconds tell, stopped by the clock and "
            "not by their score"
        )
    final = (
        "The models of the table are fitted anew with the best settings, and stop by their own validation."
        if isinstance(chosen.protocol, LeaveOneOut)
        else "The models of the table learn the validation part too, for as many epochs as did best in the search."
    )
    return [
        f"In the search {counts} were tried; {ended}. A fit is scored at its best epoch, here between epoch "
        f"{min(epochs)} and epoch {max(epochs)}; how many more it went on for is not recorded. {final}"
    ]


def _provenance(systems: Mapping[str, Sequence[Run]]) -> list[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, runs in systems.items():
        seconds = np.median([run.seconds for run in runs])
        for machine in sorted({run.machine for run in runs}):
            places[machine].append(f"{name} {seconds:,.0f} s")
    dates = sorted({run.date for runs in systems.values() for run in runs})
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    lines = [f"Run {when}; median time of a training:", ""]
    lines += [f"- on {machine}: {', '.join(told)}" for machine, told in sorted(places.items())]
    jagged = [run.facts for run in systems.get(OURS, []) if run.facts.get("tokens")]
    if jagged:
        saved = 1 - jagged[0]["tokens"] / jagged[0]["padded_tokens"]
        lines += [
            "",
            f"Joining the windows of a batch rather than padding them to the longest saved {saved:.0%} of the tokens.",
        ]
    return lines


def _values(runs: Sequence[Run]) -> dict[str, npt.NDArray[np.float64]]:
    """Each user's metrics, the mean over the runs."""
    of_runs = []
    for run in runs:
        ranks = np.array(run.ranks, np.float64)
        ranks[ranks == BEYOND] = np.inf
        of_runs.append(case_metrics(ranks, KS, complete=False))
    return {column: np.mean([values[column] for values in of_runs], axis=0) for column in _COLUMNS}


def _cell(interval: Interval) -> str:
    return f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
