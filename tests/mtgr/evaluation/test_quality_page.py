"""Promises of mtgr.evaluation.quality.rendering: the page says what the runs say, good or bad."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtgr.errors import InputError
from mtgr.evaluation.quality.data_sets import DATA_SETS
from mtgr.evaluation.quality.rendering import BASELINES, render
from mtgr.evaluation.quality.runs import BEYOND, Run

_USERS = 400
_ROOT = Path(__file__).parents[3]


def _run(
    system: str, hits: float, *, data_set: str = "beauty", seed: int = 0, rank: int = 1, **changes: Any
) -> Run:
    """A run in which this share of the users have their target at this rank, and the others in no list."""
    found = round(hits * _USERS)
    values: dict[str, Any] = {
        "data_set": data_set,
        "system": system,
        "seed": seed,
        "cases": "a",
        "ranks": [rank] * found + [BEYOND] * (_USERS - found),
        "coverage": 0.25,
        "cold": [0, 1, _USERS - 1],
        "seconds": 12.0,
        "machine": "one GPU",
        "date": "2026-01-02",
        "settings": {"n_factors": 64},
        "facts": {"epochs": 7},
    }
    return Run(**values | changes)


def _baselines(hits: float, data_set: str = "beauty") -> list[Run]:
    names = [name for name in BASELINES if name != "recent-popularity" or data_set != "beauty"]
    return [_run(name, hits, data_set=data_set) for name in names]


def _row(page: str, title: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {title} |")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_figures_are_those_of_the_ranks() -> None:
    """A target at rank 3 in 10 % of the lists: HR .1, and NDCG .1 / log2(4)."""
    page = render([_run("ours", 0.1, rank=3)])
    title, seeds, *cells, coverage = _row(page, "**MTGR, ours**")
    assert (title, seeds, coverage) == ("**MTGR, ours**", "1", "25%")
    assert [cell.split()[0] for cell in cells] == ["0.1000", "0.1000", "0.0500", "0.0500"]
    assert "400 users are tested" in page


def test_a_target_below_the_fifth_place_counts_at_ten_alone() -> None:
    """HR@5 and NDCG@5 know nothing of rank 6."""
    cells = _row(render([_run("ours", 0.1, rank=6)]), "**MTGR, ours**")
    assert cells[2].startswith("0.0000")
    assert cells[3].startswith("0.1000")


def test_seeds_are_averaged_user_by_user() -> None:
    """Two seeds at .1 and .3 make .2, and each is told by itself."""
    page = render([_run("ours", 0.1), _run("ours", 0.3, seed=1), *_baselines(0.05)])
    cells = _row(page, "**MTGR, ours**")
    assert cells[1] == "2"
    assert cells[3].startswith("0.2000")
    assert "HR@10 of our seeds one by one: 0.1000, 0.3000." in page


def test_the_interval_holds_the_value_and_is_the_same_again() -> None:
    """The bootstrap has a seed: the same runs give the same page."""
    runs = [_run("ours", 0.2), *_baselines(0.1)]
    assert render(runs) == render(runs)
    value, low, high = (
        _row(render(runs), "**MTGR, ours**")[3].replace("[", "").replace("]", "").replace(",", "").split()
    )
    assert float(low) < float(value) < float(high)


@pytest.mark.parametrize(
    ("data_set", "ours", "theirs", "verdict"),
    [
        ("beauty", 0.10, 0.05, "Reached."),
        ("beauty", 0.07, 0.05, "**Missed**: HR@10 is 0.0700, 0.0100 below 0.08."),
        ("kuairand", 0.40, 0.05, "Reached."),
    ],
)
def test_the_aim_is_reached_or_missed_by_the_figures(
    data_set: str, ours: float, theirs: float, verdict: str
) -> None:
    """In so many words."""
    page = render([_run("ours", ours, data_set=data_set), *_baselines(theirs, data_set)])
    (line,) = [line for line in page.splitlines() if line.startswith("Aim: ")]
    assert line.endswith(verdict)


def test_a_baseline_that_is_better_is_not_hidden() -> None:
    """It is named with its figure, and the difference is negative."""
    page = render([_run("ours", 0.1), *_baselines(0.05)[:-1], _run("hstu", 0.5)])
    assert "**Missed**: HSTU has 0.5000, where ours has 0.1000." in page
    assert (
        "-80% against the best baseline (HSTU, 0.5000); the intervals do not overlap; paired difference -0.4000"
        in page
    )


def test_overlapping_intervals_miss_an_aim_that_asks_for_more() -> None:
    """KuaiRand's aim asks for intervals apart."""
    runs = [_run("ours", 0.12, data_set="kuairand"), *_baselines(0.1, "kuairand")]
    assert "the interval overlaps that of SASRec" in render(runs)


def test_a_baseline_that_was_not_run_is_told() -> None:
    """No aim is reached against baselines that are not there; without times, none is asked for by the last days."""
    page = render([_run("ours", 0.3), *_baselines(0.1)[:-2]])
    assert "**Missed**: not compared with SASRec, HSTU." in page


def test_published_figures_are_marked_as_published() -> None:
    """They stand in the column of Recall@10, with no interval."""
    page = render([_run("ours", 0.3)])
    for name, recall in DATA_SETS["beauty"].published.items():
        assert f"| {name}, as published | | | {recall:.4f} | | | |" in page


def test_settings_machine_date_and_seconds_are_told() -> None:
    """What the baselines were run with, and where all was run, when and for how long."""
    page = render([_run("ours", 0.3, date="2026-01-05"), *_baselines(0.1)])
    assert "- SASRec: n_factors 64; epochs 7\n" in page
    assert "Run 2026-01-02 to 2026-01-05" in page
    assert "on one GPU: " in page
    assert "sasrec 12 s" in page


def test_a_training_that_a_time_limit_stopped_is_told() -> None:
    """A baseline that might have gone on is not shown as one that was at its end."""
    page = render([_run("hstu", 0.1, facts={"epochs": 5, "ending": "time"}), _run("hstu", 0.1, seed=1)])
    assert "- HSTU: n_factors 64; epochs 5, 7; 1 of 2 seeds stopped by a time limit" in page


def test_a_variant_is_compared_with_the_seeds_it_shares() -> None:
    """The difference is to seed 0 alone, where the variant has seed 0 alone."""
    runs: Sequence[Run] = [_run("ours", 0.3), _run("ours", 0.9, seed=1), _run("no-time-bias", 0.2, seed=0)]
    cells = _row(render(runs), "no time bias")
    assert cells[4].startswith("-0.1000 ")


def test_runs_of_other_cases_are_refused() -> None:
    """Figures of different users are not comparable."""
    with pytest.raises(InputError, match="the runs of beauty are of different test cases"):
        render([_run("ours", 0.3), _run("sasrec", 0.2, cases="b")])


def _tried(seconds: float, epochs: int, **more: Any) -> dict[str, Any]:
    return {"epochs": epochs, "seconds": {"fit": seconds}, **more}


def test_the_search_of_the_baselines_is_told_with_its_limits() -> None:
    """How many candidates, how long, and how many the clock ended; those that are counted have no epochs."""
    page = render(
        [_run("ours", 0.3)], {"beauty": {"item-knn": [_tried(0.5, 0)], "sasrec": [_tried(53.2, 7)] * 2}}
    )
    assert "In the search 2 of SASRec were tried; each fit was given about 60 s." in page
    assert "took 53 to 53 s on a GPU; 0 of 2 took 60 s or longer" in page
    tried = [_tried(61.0, 9), _tried(50.0, 4)]
    page = render([_run("ours", 0.3)], {"beauty": {"sasrec": tried, "hstu": tried[:1]}})
    assert "In the search 2 of SASRec and 1 of HSTU were tried" in page
    assert "took 50 to 61 s on a GPU; 2 of 3 took 60 s or longer" in page
    assert "between epoch 4 and epoch 9" in page
    ended = [_tried(70.0, 9, ending="time"), _tried(90.0, 4, ending="patience")]
    page = render([_run("ours", 0.3)], {"beauty": {"sasrec": ended}})
    assert "took 70 to 90 s on a GPU, and 1 of 2 were stopped by a time limit, not by their score" in page
    assert "In the search" not in render([_run("ours", 0.3)], {"kuairand": {"sasrec": ended}})


def test_baselines_are_said_to_see_ids_only() -> None:
    """Whoever compares figures is told what the others were not given."""
    assert "Baselines see ids only" in render([_run("ours", 0.3)])


def test_lines_are_never_blank_twice() -> None:
    """The page is clean Markdown also where sections are missing."""
    assert "\n\n\n" not in render([_run("ours", 0.3), _run("ours", 0.3, data_set="kuairand")])


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("README.md", "| HR@10, whole catalog", "docs/quality.md"),
        ("docs/model.md", "**Ablations**", "What was tried"),
    ],
)
def test_what_is_quoted_of_the_page_stands_on_it(name: str, begin: str, end: str) -> None:
    """Where the page is made anew, figures told elsewhere are not left behind; those of others have no leading 0."""
    quoted = (_ROOT / name).read_text().partition(begin)[2].partition(end)[0]
    figure = r"(?<![\d.])[+-]?0\.\d{4}(?!\d)"
    figures = re.findall(figure, quoted)
    assert figures
    assert set(figures) <= set(re.findall(figure, (_ROOT / "docs/quality.md").read_text()))
