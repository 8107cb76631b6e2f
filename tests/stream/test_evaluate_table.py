"""Promises of stream.tools.evaluation_table: figures of a report as people read them."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table

from mtgr.evaluation.evaluation import CaseTable, ListsResult, SliceResult, SystemResult
from mtgr.evaluation.intervals import Interval
from mtgr.evaluation.protocol import LeaveOneOut, Protocol, TimeSplit
from mtgr.evaluation.report import EvaluationReport, LogFacts
from schemas.lists import ModelVersion
from stream.tools.evaluation_table import (
    accuracy_table,
    described_target,
    difference_lines,
    interval_text,
    list_table,
)

LISTS = ListsResult(
    coverage={10: 0.125},
    popularity=1234.5,
    target_popularity=33.0,
    log_popularity=5.5,
    target_log_popularity=2.25,
    gini=0.75,
    novelty=6.5,
)


def _system(name: str, value: float, *, complete: bool) -> SystemResult:
    figures = {"HR@10": Interval(value, value - 0.01, value + 0.01), "NDCG@10": Interval(0.5, 0.4, 1.0)}
    if complete:
        figures["MRR"] = Interval(0.25, 0.2, 0.3)
    slices = {
        "all": SliceResult(2000, figures),
        "cold items": SliceResult(0, {}),
        "cold users": SliceResult(1, figures),
    }
    return SystemResult(name, slices, LISTS, [1, None], complete, 12.0 if complete else None)


REPORT = EvaluationReport(
    model=ModelVersion("demo", "abc"),
    protocol=LeaveOneOut(),
    ks=(10,),
    seed=0,
    cold_items=5,
    cold_users=10,
    log=LogFacts(3, 30, 20, 25),
    catalog=20,
    missing_targets=0,
    cases=CaseTable(["a", "b"], ["v", "w"], [1, 2], [3, 0], [4, 5]),
    systems=[_system("ours", 0.0812, complete=True), _system("theirs", 0.07, complete=False)],
    differences={"theirs": {"HR@10": Interval(0.0112, -0.002, 0.02)}},
)


def _lines(table: Table) -> list[list[str]]:
    """The cells of each printed line."""
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    return [[cell for cell in line.strip().split("  ") if cell.strip()] for line in lines]


def test_each_system_stands_in_each_slice() -> None:
    """A figure has its bounds beside it, one that is not known a dash, and an empty slice says so."""
    lines = [[cell.strip() for cell in line] for line in _lines(accuracy_table(REPORT))]
    assert lines[0] == ["last new watched video of 2 users", "HR@10", "NDCG@10", "MRR"]
    assert lines[1] == ["all", "2,000"]
    assert lines[2] == ["ours", ".0812 [.0712, .0912]", ".5000 [.4000, 1.0000]", ".2500 [.2000, .3000]"]
    assert lines[3] == ["theirs", ".0700 [.0600, .0800]", ".5000 [.4000, 1.0000]", "-"]
    assert lines[4:6] == [["videos that fewer than 5 users know", "0"], ["nobody"]]
    assert lines[6] == ["users with fewer than 10 events", "1"]
    assert len(lines) == 9


def test_lists_stand_beside_the_targets() -> None:
    """What is recommended is seen beside what was watched."""
    lines = [[cell.strip() for cell in line] for line in _lines(list_table(REPORT))]
    assert lines[1] == ["ours", "12.5%", "1,234.5", "5.50", "0.750", "6.50", "12"]
    assert lines[2][-1] == "-"
    assert lines[3] == ["the targets", "33.0", "2.25"]


def test_a_difference_tells_its_sign() -> None:
    """Whether zero is within the bounds can be read off."""
    assert difference_lines(REPORT) == ["ours - theirs: HR@10 +.0112 [-.0020, +.0200]"]


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (LeaveOneOut(), "last new watched video"),
        (LeaveOneOut(exclude_seen=False), "last watched video"),
        (TimeSplit(cut_ms=1, target="long-view"), "first new long view"),
    ],
)
def test_the_table_says_what_is_predicted(protocol: Protocol, words: str) -> None:
    """First or last, new or not, and of which kind."""
    assert described_target(protocol) == words


def test_whole_figures_keep_their_one() -> None:
    """A share of one is no zero with digits after it."""
    assert interval_text(Interval(1.0, 0.99996, 1.0)).plain == "1.0000 [1.0000, 1.0000]"
    assert interval_text(Interval(0.0, 0.0, 0.05)).plain == ".0000 [.0000, .0500]"
