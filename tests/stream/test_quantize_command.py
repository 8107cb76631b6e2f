"""Promises of `mtgr-stream quantize`: a checkpoint that everything takes, and one line where there can be none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from histories import interactions
from quantized import WIDTHS
from serving import list_request, random_checkpoint

from mtgr.checkpoint import open_checkpoint
from mtgr.errors import InputError
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListResult
from schemas.codecs import JSON, encode_event
from stream.commands import quantize


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose widths fit 4 bits."""
    return random_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", **WIDTHS)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten users with 40 events each."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    events = (event for user in range(10) for event in interactions(user, 40, f"u{user}"))
    path.write_bytes(b"".join(encode_event(event, JSON) + b"\n" for event in events))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        quantize.command, [str(argument) for argument in arguments], catch_exceptions=False
    )


@pytest.mark.parametrize(("method", "worst"), [("int8", 0.3), ("awq", 1.0)])
def test_the_lists_stay_nearly_the_same(
    checkpoint: Path, log: Path, tmp_path: Path, method: str, worst: float
) -> None:
    """The file is smaller, name, catalog and config are the same, and the version is another one."""
    events = ("--events", log) if method == "awq" else ()
    result = run("--checkpoint", checkpoint, "--method", method, "--out", tmp_path / "out", *events)
    assert result.exit_code == 0
    assert f"random in {method}, " in result.output
    before, after = open_checkpoint(checkpoint), open_checkpoint(tmp_path / "out")
    assert after.weights.stat().st_size < before.weights.stat().st_size
    assert (after.name, after.catalog, after.config) == (before.name, before.catalog, before.config)
    assert after.version != before.version
    request = list_request(interactions(99, 40))
    (was,) = ReferenceRecommender(before).recommend([request])
    (now,) = ReferenceRecommender(after).recommend([request])
    assert isinstance(was, ListResult)
    assert isinstance(now, ListResult)
    assert len(set(was.video_ids) & set(now.video_ids)) >= 7
    assert abs(was.scores[0] - now.scores[0]) < worst


def test_calibration_is_repeatable(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    """By the same seed the same checkpoint."""
    for name in ("one", "two"):
        run("--checkpoint", checkpoint, "--method", "awq", "--out", tmp_path / name, "--events", log)
    assert open_checkpoint(tmp_path / "one").version == open_checkpoint(tmp_path / "two").version


def test_awq_without_events_is_refused(checkpoint: Path, log: Path, tmp_path: Path) -> None:
    """As are events that nothing would be done with."""
    result = run("--checkpoint", checkpoint, "--method", "awq", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--method awq needs --events FILE to calibrate on" in result.output
    result = run("--checkpoint", checkpoint, "--method", "int8", "--out", tmp_path / "out", "--events", log)
    assert result.exit_code == 2
    assert "--events goes with --method awq" in result.output


def test_a_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """By the width, before anything is written."""
    checkpoint = random_checkpoint(tmp_path / "narrow")
    with pytest.raises(InputError, match="d_ff is 24, where a multiple of 16 is wanted for int8"):
        run("--checkpoint", checkpoint, "--method", "int8", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
