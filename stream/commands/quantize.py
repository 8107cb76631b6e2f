"""`mtgr-stream quantize`: a checkpoint with the weights of its linears in 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

import click

from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.datasets import parse_mapping
from mtgr.quantization.run import CALIBRATION_TOKENS, quantize_checkpoint
from mtgr.quantization.scheme import Method
from mtgr.training.trainer import choose_device
from stream.consoles import counting_bar
from stream.tools.attribute_options import attributes_of, user_list_option
from stream.tools.event_log_options import mapping_option, skip_invalid_option
from stream.tools.event_logs import read_log

_MIB: Final = 1 << 20
_DEVICES: Final = ("auto", "cpu", "cuda")


@click.command()
@click.option(
    "--checkpoint",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Directory of the checkpoint.",
)
@click.option(
    "--method", required=True, type=click.Choice(get_args(Method)),
    help="int8: weights and activations in 8 bits; awq: weights in 4 bits, scaled by what --events say of their use.",
)  # fmt: skip
@click.option(
    "--out", "target", required=True, type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the quantised checkpoint.",
)  # fmt: skip
@click.option(
    "--events", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="An event log to calibrate awq on, in any format that train reads; more files by more --events.",
)  # fmt: skip
@mapping_option
@skip_invalid_option
@click.option(
    "--users", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of users; a profile in the log replaces them.",
)  # fmt: skip
@user_list_option
@click.option(
    "--calibration-tokens", "tokens", default=CALIBRATION_TOKENS, show_default=True, type=click.IntRange(1),
    help="Events of drawn users that awq is calibrated on.",
)  # fmt: skip
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the draw of these users."
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(_DEVICES), help="Where awq searches."
)  # fmt: skip
def command(
    source: Path,
    method: Method,
    target: Path,
    files: tuple[Path, ...],
    mapping: tuple[str, ...],
    skip_invalid: bool,
    users: Path | None,
    user_lists: dict[str, str],
    tokens: int,
    seed: int,
    device: str,
) -> int:
    """Write a checkpoint again with the weights of its linears in fewer bits.

    Embeddings, norms, biases and the head stay as they are. All that takes a checkpoint takes this one: vLLM computes
    with the codes, everything else with what they stand for. `mtgr-stream evaluate` says what it costs in quality.
    """
    if method == "awq" and not files:
        raise click.UsageError("--method awq needs --events FILE to calibrate on")
    if method == "int8" and files:
        raise click.UsageError("--events goes with --method awq: int8 needs no calibration")
    checkpoint = open_checkpoint(source)
    log = None
    if files:
        columns = parse_mapping(mapping) if mapping else None
        known = attributes_of(users, user_lists, "users")
        log = read_log(files, columns, known, skip_invalid=skip_invalid)
    with counting_bar() as bar:
        task = bar.add_task("layers", total=checkpoint.config.n_layers)
        made = quantize_checkpoint(
            source,
            target,
            method,
            log,
            tokens=tokens,
            seed=seed,
            device=choose_device(device),
            on_layer=lambda done: bar.update(task, completed=done),
        )
    click.echo(
        f"{made.directory}: {made.name} in {method}, {_size(made)} where {checkpoint.directory} has {_size(checkpoint)}"
    )
    return 0


def _size(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.weights.stat().st_size / _MIB:,.1f} MiB"
