"""Promises of mtgr.evaluation.quality.baselines: baselines become runs of the same cases as ours, once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from events import watch

from mtgr.evaluation.protocol import LeaveOneOut
from mtgr.evaluation.quality import baselines
from mtgr.evaluation.quality.baselines import baselines_of, run_baseline_systems, seeds_of
from mtgr.evaluation.quality.data_sets import DATA_SETS, AttributeFile, DataSet, Loaded
from mtgr.evaluation.quality.runs import BEYOND, Run
from mtgr.presets import preset
from mtgr.training.log import EventLog

_CHOSEN = DataSet(
    name="tiny",
    title="Tiny",
    folder="tiny",
    files=(),
    videos=AttributeFile(name="videos.json", categories=()),
    protocol=LeaveOneOut(),
    preset="tiny",
    summary="",
    times=False,
)

# Gives every user the videos d, c and x, and keeps its arguments.
_RUNNER = """
import json, pathlib, sys
import polars
task, out = (pathlib.Path(text) for text in sys.argv[3:5])
options = dict(zip(sys.argv[5::2], sys.argv[6::2]))
with (out / "asked").open("a") as asked:
    asked.write(json.dumps(sys.argv[5:]) + chr(10))
users = polars.read_parquet(task / "test.parquet")["user"]
for model in options["--models"].split(","):
    for seed in options["--seeds"].split(","):
        facts = {
            "seconds": {"fit": 2.5}, "settings": {"events": "all"}, "epochs": 4, "ending": "time",
            "validation": {"ndcg@10": 0.5},
            "environment": {"device": "2 cores"}, "date": "2026-01-02",
        }
        path = out / f"{model}-{seed}.json"
        polars.DataFrame({"user": users, "items": [["d", "c", "x"]] * len(users)}).write_parquet(
            path.with_suffix(".parquet")
        )
        path.write_text(json.dumps(facts))
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A runner in place of RecTools."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "stand_in.py").write_text(_RUNNER)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "stand_in.py"} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "environment"


def _loaded() -> Loaded:
    """The last videos, which the test is of, are d for ann, c for bob and e for cat; x is known by attributes."""
    log = EventLog.collect(
        watch(user, f"{user}{place}", video, timestamp_ms=place)
        for user, videos in {"ann": "abcd", "bob": "edabc", "cat": "abde"}.items()
        for place, video in enumerate(videos)
    )
    return Loaded(log, {"x": {}}, {}, preset("tiny"))


def _asked(work: Path) -> list[list[str]]:
    return [json.loads(line) for line in (work / "fits" / "asked").read_text().splitlines()]


def test_a_baseline_becomes_a_run_of_the_cases(tmp_path: Path, environment: Path) -> None:
    """Ranks of the targets in the lists, BEYOND for one that is in none, and where and when it was fitted."""
    runs = list(
        run_baseline_systems(
            _CHOSEN, _loaded(), ["sasrec"], [0, 1], work=tmp_path / "work", environment=environment
        )
    )
    assert [run.seed for run in runs] == [0, 1]
    run = runs[0]
    assert isinstance(run, Run)
    assert (run.data_set, run.system, run.ranks) == ("tiny", "sasrec", [1, 2, BEYOND])
    assert run.coverage == pytest.approx(3 / 6), "d, c and x of a to e and x"
    assert (run.seconds, run.machine, run.date) == (2.5, "2 cores", "2026-01-02")
    assert (run.facts["epochs"], run.facts["ending"]) == (4, "time")
    assert run.cold == [0, 1, 2]


def test_what_counts_is_fitted_with_one_seed(tmp_path: Path, environment: Path) -> None:
    """Popularity and neighbours are the same for every seed."""
    assert list(seeds_of("item-knn", [4, 5])) == [4]
    assert list(seeds_of("hstu", [4, 5])) == [4, 5]
    runs = run_baseline_systems(
        _CHOSEN, _loaded(), ["popularity"], [4, 5], work=tmp_path / "work", environment=environment
    )
    assert [run.seed for run in runs] == [4]


def test_what_is_recent_needs_times() -> None:
    """A log that tells only an order has no popularity of late."""
    names = ["popularity", "recent-popularity"]
    assert baselines_of(_CHOSEN, names) == ["popularity"]
    assert baselines_of(DATA_SETS["kuairand"], names) == names


def test_settings_that_were_found_are_not_searched_again(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are handed to the runner as its own; only a baseline without any is searched, or all if asked."""
    tried = [{"settings": {"events": "all"}}]
    searched = tmp_path / "searched.json"
    searched.write_text(json.dumps({"tiny": {"sasrec": tried}}))
    monkeypatch.setattr(baselines, "SEARCHED", searched)
    names = ["sasrec", "hstu"]

    def run(work: Path, *, search: bool) -> list[tuple[str, bool]]:
        list(
            run_baseline_systems(
                _CHOSEN, _loaded(), names, [0], work=work, search=search, environment=environment
            )
        )
        return [(asked[1], "--search" in asked) for asked in _asked(work)]

    assert run(tmp_path / "found", search=False) == [("sasrec", False), ("hstu", True)]
    assert json.loads((tmp_path / "found" / "fits" / "sasrec.search.json").read_text()) == tried
    (tmp_path / "again" / "fits").mkdir(parents=True)
    assert run(tmp_path / "again", search=True) == [("sasrec,hstu", True)]
    assert not (tmp_path / "again" / "fits" / "sasrec.search.json").exists()
