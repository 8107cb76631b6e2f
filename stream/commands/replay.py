"""`mtgr-stream replay`: send repaired dead letters back to their topic."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import get_args

import click
import msgspec
from aiokafka.errors import KafkaError

from schemas.errors import Stage
from stream.kafka import quieten
from stream.observability import configure_logging
from stream.settings import Settings, settings_options
from stream.tools.repairs import Repair, RepairCommand, RepairFile, no_repair
from stream.tools.replay import Replayer, ReplaySummary, Verdict

_LISTED = 20


@click.command()
@settings_options
@click.option("--stage", type=click.Choice(get_args(Stage)), help="Only letters that died at this stage.")
@click.option(
    "--repair",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="JSON lines with topic, partition, offset and the repaired value, as --dry-run writes them.",
)
@click.option(
    "--through",
    "shell_command",
    metavar="COMMAND",
    help="Shell command that reads letters as JSON lines and writes for each a line with the repaired value.",
)
@click.option("--dry-run", is_flag=True, help="Write the letters as JSON lines; send and commit nothing.")
@click.option("--limit", type=click.IntRange(min=1), help="Look at so many letters at most.")
def command(
    settings: Settings,
    stage: Stage | None,
    file: Path | None,
    shell_command: str | None,
    dry_run: bool,
    limit: int | None,
) -> None:
    """Send the dead letters that are valid, as they are or repaired, back to the events topic.

    Letters that are still not valid are left where they are, and listed. A letter that went back is not sent a second
    time. To repair by hand:

    \b
        mtgr-stream replay --dry-run > letters.jsonl
        (edit the values in letters.jsonl)
        mtgr-stream replay --repair letters.jsonl

    \b
    or by a command such as
        mtgr-stream replay --through "jq -c '.value | .watch_seconds |= fabs'"
    """
    if file is not None and shell_command is not None:
        raise click.UsageError("--repair and --through exclude each other")
    configure_logging(settings.log)
    quieten()
    repair_file = None if file is None else RepairFile(file)
    repair: Repair = no_repair
    if repair_file is not None:
        repair = repair_file
    elif shell_command is not None:
        repair = RepairCommand(shell_command)
    left: list[Verdict] = []

    def on_verdict(verdict: Verdict) -> None:
        if dry_run:
            sys.stdout.buffer.write(msgspec.json.encode(verdict.letter) + b"\n")
        if verdict.reason is not None and len(left) < _LISTED:
            left.append(verdict)

    replayer = Replayer(settings, repair, stage=stage, limit=limit, dry_run=dry_run, on_verdict=on_verdict)
    try:
        summary = asyncio.run(replayer.run())
    except KafkaError as error:
        raise click.ClickException(f"replay failed: {type(error).__name__}: {error}") from None
    sys.stdout.flush()
    _show(summary, left, settings.topics.events, dry_run, 0 if repair_file is None else repair_file.unused)


def _show(summary: ReplaySummary, left: list[Verdict], topic: str, dry_run: bool, unused: int) -> None:
    lines = [f"{summary.replayed:,} {'would go' if dry_run else 'went'} back to {topic}"]
    for (stage, error), count in summary.left.most_common():
        lines.append(f"{count:,} left: {error} at stage {stage}")
    if summary.passed_over:
        lines.append(f"{summary.passed_over:,} of other stages passed over")
    if unused:
        lines.append(f"{unused:,} repairs of letters that are not there, or went back before")
    for verdict in left:
        letter = verdict.letter
        lines.append(f"  left: {letter.topic} {letter.partition} {letter.offset}: {verdict.reason}")
    if sum(summary.left.values()) > len(left) > 0:
        lines.append("  ...")
    # a dry run's standard output is for the letters
    click.echo("\n".join(lines), err=dry_run)
