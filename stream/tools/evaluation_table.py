"""An evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.table import Table
from rich.text import Text

from mtgr.evaluation.evaluation import ALL, COLD_ITEMS, COLD_USERS, SystemResult
from mtgr.evaluation.impressions import HeadResult
from mtgr.evaluation.intervals import Interval
from mtgr.evaluation.protocol import Protocol, TimeSplit
from mtgr.evaluation.report import EvaluationReport

_NOUNS: Final = {"watch": "watched video", "long-view": "long view"}


def accuracy_table(report: EvaluationReport) -> Table:
    """A line for each system and slice: each metric with its interval."""
    metrics = list(dict.fromkeys(name for system in report.systems for name in system.slices[ALL].metrics))
    table = _table(f"{described_target(report.protocol)} of {len(report.cases.user_ids):,} users")
    for metric in metrics:
        table.add_column(metric, justify="right")
    titles = {
        ALL: "all",
        COLD_ITEMS: f"videos that fewer than {report.cold_items} users know",
        COLD_USERS: f"users with fewer than {report.cold_users} events",
    }
    for slice_name, title in titles.items():
        users = report.systems[0].slices[slice_name].users
        table.add_row(Text.assemble((title, "bold"), (f"  {users:,}", "dim")))
        for system in report.systems if users else ():
            found = system.slices[slice_name].metrics
            cells = [interval_text(found[metric]) if metric in found else "-" for metric in metrics]
            table.add_row(f"  {system.name}", *cells)
        if not users:
            table.add_row(Text("  nobody", style="dim"))
    return table


def list_table(report: EvaluationReport) -> Table:
    """A line for each system: what its lists are like as a whole, and the targets' popularity beside theirs."""
    k = max(report.ks)
    table = _table(f"lists of {k}")
    for size in sorted(report.ks):
        table.add_column(f"coverage@{size}", justify="right")
    for heading in ("users who know a video", "log of them", "Gini", "novelty", "seconds"):
        table.add_column(heading, justify="right")
    for system in report.systems:
        table.add_row(*_list_cells(system, report.ks))
    targets = report.systems[0].lists
    table.add_row(
        Text("the targets", style="dim"),
        *("" for _ in report.ks),
        f"{targets.target_popularity:,.1f}",
        f"{targets.target_log_popularity:.2f}",
    )
    return table


def head_table(heads: Mapping[str, HeadResult]) -> Table:
    """A line for each ranking head that some user's impressions can judge."""
    table = _table("ranking head")
    for heading in ("GAUC", "users with both outcomes", "their impressions", "positive"):
        table.add_column(heading, justify="right")
    for name, head in heads.items():
        if head.gauc is None:
            continue
        table.add_row(
            name,
            interval_text(head.gauc),
            f"{head.users:,}",
            f"{head.impressions:,}",
            f"{head.positives:.1%}",
        )
    return table


def unjudged_lines(heads: Mapping[str, HeadResult]) -> list[str]:
    """A line for each ranking head that has no figure, saying why."""
    return [f"{name}: no user has both outcomes" for name, head in heads.items() if head.gauc is None]


def difference_lines(report: EvaluationReport) -> list[str]:
    """How much better the evaluated model is than each other system, paired by user."""
    k = max(report.ks)
    lines = []
    for name, differences in report.differences.items():
        parts = [
            f"{metric} {_signed(found.value)} [{_signed(found.low)}, {_signed(found.high)}]"
            for metric in (f"HR@{k}", f"NDCG@{k}")
            if (found := differences.get(metric)) is not None
        ]
        lines.append(f"{report.systems[0].name} - {name}: {', '.join(parts)}")
    return lines


def described_target(protocol: Protocol) -> str:
    """What is predicted, in words."""
    which = "first" if isinstance(protocol, TimeSplit) else "last"
    new = "new " if protocol.exclude_seen else ""
    return f"{which} {new}{_NOUNS[protocol.target]}"


def interval_text(interval: Interval) -> Text:
    """`.0812 [.0771, .0852]`, the bounds dim."""
    bounds = f" [{_share(interval.low)}, {_share(interval.high)}]"
    return Text.assemble(_share(interval.value), (bounds, "dim"))


def _list_cells(system: SystemResult, ks: tuple[int, ...]) -> list[str]:
    lists = system.lists
    return [
        system.name,
        *(f"{lists.coverage[k]:.1%}" for k in sorted(ks)),
        f"{lists.popularity:,.1f}",
        f"{lists.log_popularity:.2f}",
        f"{lists.gini:.3f}",
        f"{lists.novelty:.2f}",
        "-" if system.seconds is None else f"{system.seconds:,.0f}",
    ]


def _table(title: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(title, no_wrap=True)
    return table


def _share(number: float) -> str:
    return f"{number:.4f}".replace("0.", ".", 1) if 0 <= number < 0.99995 else f"{number:.4f}"


def _signed(number: float) -> str:
    return ("+" if number >= 0 else "-") + _share(abs(number))
