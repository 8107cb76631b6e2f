"""Promises of mtgr.evaluation.baselines: what the other environment is told, and what it may not know."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from events import watch

from mtgr.errors import InputError
from mtgr.evaluation.baselines import MODELS, BaselineOptions, read_lists, run_baselines, write_task
from mtgr.evaluation.baselines.launch import baselines_folder
from mtgr.evaluation.protocol import LeaveOneOut, Protocol, TimeSplit
from mtgr.training.log import EventLog

_PROJECT = Path(__file__).parents[3]


def _log(users: int = 4, videos: int = 6) -> EventLog:
    """Users who go round the videos, each from another one; every second watch is a long view."""
    return EventLog.collect(
        watch(
            f"user-{user}",
            f"{user}-{place}",
            f"video-{(user + place) % videos}",
            timestamp_ms=1_000 * place,
            watch_seconds=20.0 if place % 2 else 2.0,
            video_seconds=60.0,
        )
        for user in range(users)
        for place in range(videos)
    )


def _environment(directory: Path, script: str) -> Path:
    """An environment whose Python runs this script in place of the runner."""
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    (directory / "script.py").write_text(script)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {directory / "script.py"} "$@"\n')
    python.chmod(0o755)
    return directory


@pytest.mark.parametrize(
    "protocol",
    [LeaveOneOut(), TimeSplit(cut_ms=4_000, validation_days=2_000 / 86_400_000)],
    ids=["last", "time"],
)
def test_a_task_holds_no_target_of_the_test(protocol: Protocol, tmp_path: Path) -> None:
    """Neither as a target nor among what is learnt or known: a baseline cannot see what it is to predict."""
    split = protocol.split(_log())
    write_task(tmp_path, split, protocol, times=True)
    cases = pl.read_parquet(tmp_path / "test.parquet")
    assert "target" not in cases.columns
    assert cases["user"].to_list() == [case.user_id for case in split.test]
    learnt = pl.read_parquet(tmp_path / "training.parquet")
    for case, known in zip(split.test, cases["history"].to_list(), strict=True):
        assert case.video_id not in known
        assert not len(learnt.filter((pl.col("user") == case.user_id) & (pl.col("item") == case.video_id)))


def test_a_task_tells_the_kind_of_event_that_is_predicted(tmp_path: Path) -> None:
    """Long views weigh 1 and what was skipped 0, in what is learnt as in what is known of a case."""
    protocol = TimeSplit(cut_ms=4_000, target="long-view", validation_days=2_000 / 86_400_000)
    split = protocol.split(_log())
    write_task(tmp_path, split, protocol, times=True)
    learnt = pl.read_parquet(tmp_path / "training.parquet").filter(pl.col("user") == "user-0")
    assert learnt.sort("time_ms")["weight"].to_list() == [0, 1, 0, 1]
    assert pl.read_parquet(tmp_path / "test.parquet")["weights"].to_list()[0] == [0, 1, 0, 1]
    validation = pl.read_parquet(tmp_path / "validation.parquet")
    assert validation["target"].to_list() == [case.video_id for case in split.validation]
    assert len(pl.read_parquet(tmp_path / "selection.parquet")) < len(
        pl.read_parquet(tmp_path / "training.parquet")
    )
    assert json.loads((tmp_path / "task.json").read_text()) == {"exclude_seen": True, "times": True}


def test_the_runner_is_told_everything_and_nothing_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arguments are the options, its events reach the caller, and PYTHONPATH does not reach it."""
    monkeypatch.setenv("PYTHONPATH", str(_PROJECT))
    script = (
        "import json, os, sys\n"
        "print('a warning that is no event')\n"
        "print(json.dumps({'event': 'told', 'arguments': sys.argv[1:], 'path': os.environ.get('PYTHONPATH')}))\n"
    )
    told: list[dict[str, Any]] = []
    options = BaselineOptions(models=("hstu",), seeds=(1, 2), k=7, device="cpu", search=True, fit_seconds=9.0)
    run_baselines(tmp_path, tmp_path / "out", options, told.append, _environment(tmp_path / "env", script))
    assert [event["event"] for event in told] == ["told"]
    assert told[0]["path"] is None
    assert " ".join(told[0]["arguments"]) == (
        f"-m runner {tmp_path} {tmp_path / 'out'} --models hstu --seeds 1,2 --k 7 --device cpu --jobs 1 "
        "--search --fit-seconds 9.0"
    )


def test_a_runner_that_fails_is_told_by_its_last_words(tmp_path: Path) -> None:
    """One line with the exit code and the end of what it said."""
    script = "import sys\nfor n in range(9): print('line', n)\nsys.exit(3)\n"
    with pytest.raises(InputError, match=r"^the baselines failed with exit code 3: .*line 7 / line 8$"):
        run_baselines(tmp_path, tmp_path, BaselineOptions(), environment=_environment(tmp_path / "e", script))


def test_a_missing_environment_and_an_unknown_baseline_are_told(tmp_path: Path) -> None:
    """Each by name, with what would be right."""
    with pytest.raises(InputError, match="`make baselines` makes it"):
        run_baselines(tmp_path, tmp_path, BaselineOptions(), environment=tmp_path / "nowhere")
    options = BaselineOptions(models=("svd",))
    with pytest.raises(InputError, match="baseline 'svd' is not known; known are popularity, "):
        run_baselines(tmp_path, tmp_path, options, environment=_environment(tmp_path / "e", ""))


def test_lists_that_were_not_written_are_told(tmp_path: Path) -> None:
    """By the file that is not there."""
    with pytest.raises(InputError, match=r"sasrec-1\.json: cannot be read"):
        read_lists(tmp_path, "sasrec", 1)


@pytest.mark.skipif(
    not (baselines_folder() / "venv" / "bin" / "python").exists(), reason="`make baselines` was not run"
)
@pytest.mark.timeout(600)
def test_rectools_recommends_new_videos_by_all_models(tmp_path: Path) -> None:
    """In the real environment: lists of videos, each once, without what was seen, and what is told of them."""
    protocol = LeaveOneOut()
    split = protocol.split(_log(users=24, videos=12))
    write_task(tmp_path / "task", split, protocol, times=True)
    events: list[dict[str, Any]] = []
    options = BaselineOptions(models=MODELS, seeds=(3,), k=5, device="cpu", fit_seconds=1.0)
    run_baselines(tmp_path / "task", tmp_path / "out", options, events.append)
    assert {event["model"] for event in events if event["event"] == "fitted"} == set(MODELS)
    assert all("ending" in event for event in events if event["event"] == "tried"), (
        "a search keeps why a fit ended"
    )
    for model in MODELS:
        fitted = read_lists(tmp_path / "out", model, 3)
        for case in split.test:
            videos = fitted.lists[case.user_id]
            assert videos == list(dict.fromkeys(videos))
            assert not set(videos) & set(case.history.video_ids)
        assert fitted.device
        assert fitted.facts.keys() >= {"date", "ending", "environment", "epochs", "settings", "validation"}
