"""Promises of mtgr.evaluation.fitted: baselines see what the model sees, and are fitted once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from events import watch

from mtgr.errors import InputError
from mtgr.evaluation.baselines.launch import FOLDER_VARIABLE, baselines_folder, check_environment
from mtgr.evaluation.fitted import fit_baselines
from mtgr.evaluation.protocol import LeaveOneOut, Protocol, TimeSplit
from mtgr.training.log import EventLog

# Recommends to everybody the videos of the training part by name, and keeps count of its fits; as the real
# runner does, it computes nothing again.
RUNNER = """
import json, pathlib, sys
import polars
task, out = (pathlib.Path(text) for text in sys.argv[3:5])
options = dict(zip(sys.argv[5::2], sys.argv[6::2]))
out.mkdir(parents=True, exist_ok=True)
training = polars.read_parquet(task / "training.parquet")
cases = polars.read_parquet(task / "test.parquet")
assert "target" not in cases.columns
for model in options["--models"].split(","):
    path = out / f"{model}-{options['--seeds']}.json"
    if path.exists():
        continue
    items = sorted(set(training["item"]))[: int(options["--k"])]
    facts = {"seconds": {"fit": 1.5}, "settings": {"events": len(training)}, "environment": {"device": "cpu"}}
    polars.DataFrame({"user": cases["user"], "items": [items] * len(cases)}).write_parquet(path.with_suffix(".parquet"))
    path.write_text(json.dumps(facts))
    print(json.dumps({"event": "fitted", "model": model}))
"""


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner in place of RecTools."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "baselines"))
    python = tmp_path / "baselines" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "stand_in.py").write_text(RUNNER)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "stand_in.py"} "$@"\n')
    python.chmod(0o755)


def _log() -> EventLog:
    return EventLog.collect(
        watch(user, f"{user}{place}", video, timestamp_ms=place)
        for user, videos in {"ann": "abcd", "bob": "bcde"}.items()
        for place, video in enumerate(videos)
    )


@pytest.mark.parametrize(
    ("protocol", "learnt"),
    [(LeaveOneOut(), 4), (TimeSplit(cut_ms=3, validation_days=2 / 86_400_000), 6)],
    ids=["leave-one-out", "time"],
)
def test_what_was_fitted_is_not_fitted_again(protocol: Protocol, learnt: int) -> None:
    """The same split gives the kept lists; another length of lists or another model is another fit."""
    split = protocol.split(_log())
    fits: list[str] = []

    def fitted(*models: str, k: int = 3) -> list[list[str]]:
        found = fit_baselines(
            split,
            protocol,
            models,
            k=k,
            seed=1,
            times=True,
            on_event=lambda event: fits.append(event["model"]),
        )
        assert [one.model for one in found] == list(models)
        assert all(one.settings == {"events": learnt} and one.seconds == 1.5 for one in found)
        return [one.lists["ann"] for one in found]

    assert fitted("popularity", "sasrec") == [["a", "b", "c"], ["a", "b", "c"]]
    assert fitted("sasrec", "item-knn") == [["a", "b", "c"], ["a", "b", "c"]]
    assert fitted("sasrec", k=2) == [["a", "b"]]
    assert fits == ["popularity", "sasrec", "item-knn", "sasrec"]
    assert len(list((baselines_folder() / "fits").iterdir())) == 2, "tasks are not kept"


def test_a_missing_environment_is_told_by_how_to_make_it() -> None:
    """Before the work, not after it."""
    python = check_environment()
    python.unlink()
    with pytest.raises(
        InputError, match=rf"^{python}: there is no environment for the baselines; `make baselines` makes it"
    ):
        check_environment()


def test_the_environment_is_the_checkouts_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make baselines` made is found from elsewhere; a folder that is named comes first."""
    checkout = Path(__file__).parents[3]
    monkeypatch.delenv(FOLDER_VARIABLE)
    monkeypatch.chdir(tmp_path)
    assert baselines_folder() == checkout / ".baselines"
    monkeypatch.setenv(FOLDER_VARIABLE, "mine")
    assert baselines_folder() == tmp_path / "mine"
