"""Promises of `mtgr-stream train` and `mtgr-stream models`: a log in, a checkpoint out, and one line where not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from events import watch

from mtgr.checkpoint import open_checkpoint
from mtgr.errors import InputError
from mtgr.model.mtgr import parameter_counts
from mtgr.presets import PRESETS
from schemas.codecs import JSON, encode_event
from stream.commands import models, train


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A small event log as JSON lines."""
    chance = random.Random(0)
    path = tmp_path / "log.jsonl"
    with path.open("wb") as file:
        for number in range(600):
            event = watch(
                f"u{number % 30}", str(number), video_id=f"v{chance.randrange(50)}", timestamp_ms=number
            )
            file.write(encode_event(event, JSON) + b"\n")
    return path


def _train(*arguments: object) -> Result:
    return CliRunner().invoke(train.command, [str(argument) for argument in arguments], terminal_width=200)


def test_a_log_becomes_a_checkpoint(log: Path, tmp_path: Path) -> None:
    """The command trains, prints accuracy beside the baseline, and names the checkpoint that then loads."""
    out = tmp_path / "out"
    result = _train("--events", log, "--out", out, "--epochs", 2, "--name", "demo", "--device", "cpu")
    assert result.exit_code == 0, result.output
    checkpoint = open_checkpoint(out)
    assert checkpoint.name == "demo"
    assert checkpoint.config == PRESETS["tiny"].replace(n_items=50)
    checkpoint.load_model()
    assert "of 600 events of 30 users and 50 videos: 2.0 epochs" in result.stdout
    for line in ("next new video of 30 users", "HR@10", "NDCG@10", "this model", "known to most"):
        assert line in result.stdout
    assert f"{out} (demo, version {checkpoint.version})" in result.stdout
    assert "100%" in result.stderr
    assert "tokens/s" in result.stderr


def test_several_logs_are_one(log: Path, tmp_path: Path) -> None:
    """Files may follow --events or come each with its own, as shells expand them; duplicates change nothing."""
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(log.read_bytes())
    for arguments in (("--events", log, copy), ("--events", log, "--events", copy)):
        result = _train(*arguments, "--out", tmp_path / "out", "--epochs", 1)
        assert "of 600 events of 30 users" in result.stdout, result.output


def test_what_is_no_event_is_told_or_counted(log: Path, tmp_path: Path) -> None:
    """A bad line stops training unless it is to be skipped; then it is counted and the first is shown."""
    with log.open("ab") as file:
        file.write(b'{"type": "watch"}\n')
    out = tmp_path / "out"
    with pytest.raises(InputError, match="601"):
        CliRunner().invoke(train.command, ["--events", str(log), "--out", str(out)], catch_exceptions=False)
    assert not out.exists()
    result = _train("--events", log, "--out", out, "--epochs", 1, "--skip-invalid")
    assert result.exit_code == 0
    assert "skipped 1 records that are no events, the first: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "tinny"), "unknown preset 'tinny'; did you mean tiny"),
        (("--events", "nowhere.csv"), "nowhere.csv: there is no such file"),
        (("--out", "."), "which is no part of a checkpoint"),
    ],
)
def test_a_wrong_argument_is_told_before_the_work(
    log: Path, arguments: tuple[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preset, files and target are checked before a long training, not after it."""
    monkeypatch.chdir(log.parent)
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("training began"))
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(
            train.command, ["--events", str(log), "--out", "out", *arguments], catch_exceptions=False
        )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--batch-tokens", "0"),
        ("--max-seconds", "0"),
        ("--max-seconds", "nan"),
        ("--max-seconds", "inf"),
    ],
)
def test_an_option_out_of_bounds_is_a_usage_error(log: Path, option: str, value: str) -> None:
    """Zero of anything, and what is no number, is refused by the option's own name."""
    result = _train("--events", log, "--out", log.parent / "out", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def test_every_preset_is_listed_with_its_true_size() -> None:
    """The table has a line for each preset, with the parameters counted on the model."""
    lines = CliRunner().invoke(models.command).stdout.splitlines()
    for name, config in PRESETS.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert f" {parameter_counts(config)[0]:,} " in line
