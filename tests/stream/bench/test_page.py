"""Promises of stream.bench.page: a benchmark writes its own section of a page and touches nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtgr.errors import InputError
from stream.bench.page import RELIABILITY, markdown_table, write_section

PAGE = """# Page

<!-- state: written by make bench -->
<!-- /state -->

By hand.

<!-- restart: written by make bench -->

old

<!-- /restart -->
"""


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    """What stands between the marks is what was written last, however often."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for _ in range(2):
        write_section(page, "state", "| new |\n")
    text = page.read_text()
    assert text.count("| new |") == 1
    assert text.replace("\n\n| new |\n\n<!-- /state", "\n<!-- /state") == PAGE
    write_section(page, "restart", "newer")
    assert "old" not in page.read_text()


def test_a_page_without_a_place_is_named(tmp_path: Path) -> None:
    """Nothing is written where nobody said it should stand."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    with pytest.raises(InputError, match="no place for lists"):
        write_section(page, "lists", "new")
    assert page.read_text() == PAGE


@pytest.mark.parametrize("name", ["state", "restart"])
def test_the_page_has_a_place_for_each(name: str) -> None:
    """What `make bench ARGS="... --write"` writes has its place."""
    text = (Path(__file__).parents[3] / RELIABILITY).read_text()
    assert f"<!-- {name}: written by make bench -->\n" in text
    assert f"<!-- /{name} -->\n" in text


def test_a_table_is_markdown() -> None:
    """A head, a rule and a line for each row."""
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
