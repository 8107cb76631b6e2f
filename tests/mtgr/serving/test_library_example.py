"""The README's example of the library runs as it is written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtgr.behaviors import Behavior

README = Path(__file__).parents[3] / "README.md"


def section() -> str:
    """What stands under "Use it as a library"."""
    found = re.search(r"^## Use it as a library\n(.*?)^## ", README.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def block(language: str) -> str:
    """The only block of a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", section(), re.DOTALL | re.MULTILINE)
    return str(code)


@pytest.mark.vllm
def test_the_example_runs_as_written(tmp_path: Path) -> None:
    """The commands make its checkpoint, and it prints the same lists by plain torch and by vLLM, sync and async."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    (tmp_path / "example.py").write_text(block("python"))
    script = f"set -e\n{block('')}\n{sys.executable} example.py"
    answer = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    lines = [line for line in answer.stdout.splitlines() if line.endswith(" events)")]
    lists = [re.findall(r" \d:(v\d{6})", line) for line in lines]
    assert [line.partition(":")[0] for line in lines] == [
        "plain torch", "vLLM", "plain torch", *(f"u-{number} of 50 at once" for number in range(3)), "engine"
    ]  # fmt: skip
    assert all(len(set(one)) == 5 for one in lists)
    assert lists[1] == lists[2]
    assert [line.rpartition("(")[2] for line in lines] == [
        "3 events)",
        *["5 events)"] * 2,
        *["3 events)"] * 4,
    ]


def test_the_table_has_each_field_of_a_behaviour() -> None:
    """By its name, and no other."""
    rows = re.findall(r"^\| (`.*?) \|", section(), re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(Behavior.__struct_fields__)
