"""`mtgr-stream models`: list the model presets."""

from __future__ import annotations

import click
from rich.table import Table

from mtgr.model.mtgr import parameter_counts
from mtgr.presets import PRESETS
from stream.consoles import table_console

_PIPE_COLUMNS = 160


@click.command()
def command() -> None:
    """List the model presets with their true parameter counts.

    Parameters are counted on the model itself, made without storage. The catalog is nominal: training
    replaces it by the videos of its log, and the share of the video embeddings with it.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("preset")
    for heading in ("width", "layers", "heads", "d_qk", "d_v", "d_ff", "catalog", "max events", "parameters"):
        table.add_column(heading, justify="right")
    table.add_column("in video embeddings", justify="right")
    for name, config in PRESETS.items():
        total, embedded = parameter_counts(config)
        table.add_row(
            f"[bold]{name}[/bold]",
            *(
                f"{size:,}"
                for size in (config.d_model, config.n_layers, config.n_heads, config.d_qk, config.d_v)
            ),
            f"{config.d_ff:,}" if config.d_ff else "-",
            *(f"{size:,}" for size in (config.n_items, config.max_events, total)),
            f"{embedded / total:.1%}",
        )
    # a pipe is as wide as the table
    console = table_console(_PIPE_COLUMNS)
    console.print(table)
