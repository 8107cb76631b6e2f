"""`mtgr-stream plot`: draw the curves of trainings."""

from __future__ import annotations

from pathlib import Path

import click

from stream.tools.curves import FORMATS, draw, read_runs, save


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("curves.png"), show_default=True,
    help=f"What to write, by its ending: {', '.join(FORMATS)}.",
)  # fmt: skip
def command(runs: tuple[Path, ...], out: Path) -> None:
    """Draw loss, accuracy on what is held out, learning rate and speed over the steps.

    RUN is a checkpoint's directory, a training's run directory, or its metrics.jsonl. Several are drawn into one
    picture. A training may still be running.
    """
    lines = read_runs(runs)
    save(draw(lines), out, ", ".join(lines))
    click.echo(f"{out}: {', '.join(lines)}")
