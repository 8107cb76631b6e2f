"""A run says which code it measured."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from mtgr.bench.cases import parse_case
from mtgr.bench.machine import commit
from mtgr.bench.records import Environment, RecordFile, Row, Setting, read_records
from mtgr.bench.render import render
from mtgr.bench.results import Results

OLD = Environment(
    "cpu", "a machine", None, {"torch": "2.0"}, "2026-01-01T00:00:00+00:00", "python -m mtgr.bench"
)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one commit, which has one file; no other git's settings have a say."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "file").write_text("as it was")
    for command in ("init", "add file", "-c user.name=a -c user.email=a@localhost commit -m one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


def test_the_commit_is_told_and_whether_the_files_are_as_it_has_them(repository: Path) -> None:
    """A file that git does not track is no change of the code."""
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=repository, text=True).strip()
    (repository / "measured.jsonl").write_text("")
    assert commit(repository) == head
    (repository / "file").write_text("as it is")
    assert commit(repository) == f"{head}+"


def test_where_git_does_not_know_nothing_is_told(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from an installed package, or without git."""
    outside = tmp_path_factory.mktemp("outside")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(outside.parent))
    assert commit(outside) is None
    monkeypatch.setenv("PATH", str(outside))
    assert commit(repository) is None


def test_the_page_names_the_commit_and_reads_records_from_before_there_was_one(tmp_path: Path) -> None:
    """In the line of the environment."""
    path = tmp_path / "records.jsonl"
    old = msgspec.json.decode(msgspec.json.encode(OLD))
    del old["commit"]
    path.write_bytes(msgspec.json.encode(old) + b"\n")
    RecordFile(path).add(msgspec.structs.replace(OLD, commit="abc1234+"))
    row = Row(Setting("cpu", "tiny", "float32"), "ours", parse_case("1x100"), [1.0], 1, 1)
    lines = render(Results([*read_records([path]), row])).splitlines()
    assert [line.endswith("torch 2.0; commit abc1234+:") for line in lines if "a machine" in line] == [
        False,
        True,
    ]
