"""`mtgr-stream topics`: create or check the topics."""

from __future__ import annotations

import asyncio
import sys

import click
from rich.table import Table

from stream.consoles import table_console
from stream.kafka import quieten
from stream.observability import configure_logging
from stream.settings import Settings, settings_options
from stream.topic_reports import TopicReport
from stream.topics import review_topics

_STYLES = {"ready": "green", "created": "bold green", "missing": "yellow", "wrong": "bold red"}
_DAY_MS = 86_400_000
_PIPE_COLUMNS = 240


@click.command()
@settings_options
@click.option("--check", is_flag=True, help="Only compare; create nothing.")
def command(settings: Settings, check: bool) -> int:
    """Create the events, lists, dead letter and changelog topics, or check those that are there.

    Topics that exist are never changed. Exit code 2 where a topic has the wrong partitions or cleanup
    policy, or with --check is missing.
    """
    configure_logging(settings.log)
    quieten()
    reports = asyncio.run(review_topics(settings, create=not check))
    # a pipe is as wide as the table
    console = table_console(_PIPE_COLUMNS)
    console.print(_table(reports))
    for report in reports:
        for note in report.notes:
            console.print(f"note: {note}", highlight=False, soft_wrap=True)
    problems = [problem for report in reports for problem in report.problems]
    sys.stdout.flush()
    for problem in problems:
        click.echo(f"mtgr-stream: {problem}", err=True)
    return 2 if problems else 0


def _table(reports: list[TopicReport]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("topic", "role", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("partitions", "replicas"):
        table.add_column(heading, justify="right")
    for heading in ("cleanup", "keeps"):
        table.add_column(heading)
    for report in reports:
        here = report.outcome != "missing"
        cleanup = report.configs.get("cleanup.policy", "")
        table.add_row(
            report.topic.name,
            report.topic.role.replace("_", " "),
            f"[{_STYLES[report.outcome]}]{report.outcome}[/]",
            str(report.partitions) if here else "",
            str(report.replication_factor) if here else "",
            cleanup,
            _retention(report.configs) if here else "",
        )
    return table


def _retention(configs: dict[str, str]) -> str:
    if "delete" not in configs["cleanup.policy"]:
        return "last of each key"
    milliseconds, size = int(configs["retention.ms"]), int(configs["retention.bytes"])
    limits = [] if milliseconds < 0 else [f"{milliseconds / _DAY_MS:g} days"]
    if size >= 0:
        limits.append(f"{size / 2**30:.3g} GiB a partition")
    return " or ".join(limits) or "ever"
