"""Promises of `mtgr-stream plot`: figures of trainings become pictures, and one line where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mtgr.errors import InputError
from mtgr.training.metrics import EvaluationMetrics, MetricsFile, StepMetrics
from stream.commands import plot
from stream.tools.curves import draw, read_runs


def _run(directory: Path, loss: float) -> Path:
    directory.mkdir(parents=True)
    metrics = MetricsFile(directory / "metrics.jsonl")
    for step in (10, 20, 30):
        metrics.write(
            StepMetrics(
                step=step,
                epoch=step / 30,
                seconds=step,
                loss=loss / step,
                ranking_loss=None,
                learning_rate=0.1,
                gradient_norm=1.0,
                tokens_per_second=1000.0,
            )
        )
    metrics.write(EvaluationMetrics(step=30, epoch=1, seconds=31, cases=5, hit_rate=0.4, ndcg=0.2))
    return directory


@pytest.mark.parametrize(
    ("name", "beginning"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.html", b"<!doctype html>")]
)
def test_runs_become_a_picture(name: str, beginning: bytes, tmp_path: Path) -> None:
    """The ending of the file says which kind; the runs are named in it and on the console."""
    runs = [_run(tmp_path / "one.training", 5.0), _run(tmp_path / "two.training", 6.0)]
    result = CliRunner().invoke(
        plot.command, [str(tmp_path / "one"), str(runs[1]), "--out", str(tmp_path / name)]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / name}: one, two\n"
    written = (tmp_path / name).read_bytes()
    assert written.startswith(beginning)
    if name == "a.html":
        assert b"<title>one, two</title>" in written
        assert written.count(b"<svg") == 1
        assert not any(needed in written for needed in (b"src=", b"<link", b"<script", b"@import"))


def test_the_curves_are_the_figures(tmp_path: Path) -> None:
    """Each run has its loss, accuracy, rate and speed over its steps; equal names are told apart."""
    runs = read_runs([_run(tmp_path / side / "run", loss) for side, loss in (("a", 5.0), ("b", 6.0))])
    assert list(runs) == ["a/run", "b/run"]
    loss, accuracy, rate, speed = draw(runs).axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [  # type: ignore[union-attr]
        [[10, 0.5], [20, 0.25], [30, pytest.approx(5 / 30)]],
        [[10, 0.6], [20, 0.3], [30, 0.2]],
    ]
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.4], [0.2]] * 2  # type: ignore[union-attr]
    assert len(rate.lines) == len(speed.lines) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: holds no metrics.jsonl; name a run's directory"),
        (["run", "--out", "curves.gif"], "curves.gif: should end in .png, .svg, .html"),
        (["run", "--out", "no/such/place.png"], "place.png: cannot be written"),
        (["broken.jsonl"], "broken.jsonl: line 1 holds no metrics"),
        (["empty.jsonl"], "empty.jsonl: holds no figures yet"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the file."""
    monkeypatch.chdir(tmp_path)
    _run(tmp_path / "run", 5.0)
    (tmp_path / "broken.jsonl").write_text('{"kind": "steps"}\n{}\n')
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(plot.command, arguments, catch_exceptions=False)
    assert message in str(caught.value)
