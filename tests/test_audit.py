"""The audit of the pins says what was found, and never takes silence for a clean bill."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOUND = {"name": "click", "version": "8.3.0", "vulns": []}
UNKNOWN = {"name": "click", "skip_reason": "Dependency not found on PyPI"}
WEAK = {
    "name": "click",
    "version": "8.3.0",
    "vulns": [
        {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["8.3.1"], "description": ""}
    ],
}
YANKED = 'warning: `attrs==21.1.0` is yanked (reason: "not importable")'

Answers = dict[str, dict[str, Any] | None]


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the audit with what each service answers, None for one that is out of reach, and what uv warns of."""
    spec = importlib.util.spec_from_file_location("audit", Path(__file__).parents[1] / ".ci/audit.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(answers: Answers, warnings: str = "") -> int:
        def answered(arguments: list[str]) -> subprocess.CompletedProcess[str]:
            if "compile" in arguments:
                return subprocess.CompletedProcess(arguments, 0, "", warnings)
            package = answers[arguments[-1]]
            output = "" if package is None else json.dumps({"dependencies": [package]})
            return subprocess.CompletedProcess(arguments, int(package != SOUND), output, "")

        monkeypatch.setattr(module, "_uv", answered)
        return int(module.main())

    return run


def test_a_known_weakness_is_named_with_the_version_that_mends_it(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Package, names of the weakness and the version to go to are in one line."""
    assert audit({"pypi": WEAK}) == 1
    assert "click==8.3.0: PYSEC-2026-1, CVE-2026-1; mended in 8.3.1" in capsys.readouterr().out


def test_sound_pins_are_said_to_be_sound(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line says how many were audited, and by whom."""
    assert audit({"pypi": SOUND}) == 0
    assert "audited 1 of 1 pinned packages by pypi: 0 known weaknesses" in capsys.readouterr().out


@pytest.mark.parametrize("silence", [None, UNKNOWN])
def test_a_service_that_knows_nothing_gives_way_to_the_next(
    audit: Callable[..., int], silence: dict[str, Any] | None
) -> None:
    """An index that is no PyPI knows of no package; that is no answer."""
    assert audit({"pypi": silence, "osv": WEAK}) == 1


def test_nobody_to_ask_is_not_nothing_found(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no service is in reach it is said so, by an exit code of its own."""
    assert audit({"pypi": UNKNOWN, "osv": None}) == 3
    assert "NOT AUDITED" in capsys.readouterr().out


def test_withdrawn_versions_are_found_without_any_service(
    audit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The package index alone tells which versions their makers took back, and why."""
    assert audit({"pypi": None, "osv": None}, f"Resolved 2 packages\n{YANKED}\n") == 1
    assert YANKED in capsys.readouterr().out
