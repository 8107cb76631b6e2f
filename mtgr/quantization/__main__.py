"""`python -m mtgr.quantization`: serve one model in each number format, and say what that costs and what it saves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import click
import msgspec
import torch
from rich.console import Console
from rich.table import Table

from mtgr.bench.machine import machine
from mtgr.datasets import read_events
from mtgr.errors import InputError
from mtgr.evaluation.evaluation import ALL, Evaluation
from mtgr.evaluation.protocol import LeaveOneOut, Part
from mtgr.quantization.models import MeasuredModel
from mtgr.quantization.variants import (
    VARIANTS,
    Device,
    Load,
    Measured,
    Variant,
    change,
    measure,
    median_length,
)
from mtgr.serving.options import EngineOptions
from mtgr.training.log import EventLog

_METRIC: Final = "NDCG@10"
_COLUMNS: Final = 120
_TESTED: Final[tuple[Part, ...]] = ("test",)


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A trained model; needs --events.")
@click.option(
    "--preset", "preset_name", help="Instead: a preset with weights made up, for speed and memory alone."
)
@click.option(
    "--events", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="The log that the model was trained on, tested on each user's last new watch; more by more --events.",
)  # fmt: skip
@click.option(
    "--work", required=True, type=click.Path(path_type=Path), help="Directory for quantised checkpoints."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where it is]")
@click.option(
    "--variant", "names", multiple=True, metavar="NAME", help="Only this one; more by more --variant."
)
@click.option("--users", default=64, show_default=True, type=click.IntRange(1), help="Users of a batch.")
@click.option(
    "--user-events", type=click.IntRange(32), help="Events of each.  [default: half of the model's]"
)
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(1), help="Batches of a median.")
@click.option("--kv-cache-gib", default=4.0, show_default=True, type=float, help="Memory of the KV cache.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write all that was measured.")
def main(
    checkpoint: Path | None,
    preset_name: str | None,
    files: tuple[Path, ...],
    work: Path,
    device: Device | None,
    names: tuple[str, ...],
    users: int,
    user_events: int | None,
    repeats: int,
    kv_cache_gib: float,
    out: Path | None,
) -> None:
    """Serve a model in every number format that the device has, one engine after the other."""
    if (checkpoint is None) == (preset_name is None) or (checkpoint is None) != (not files):
        raise click.UsageError("--checkpoint DIR with --events FILE, or --preset NAME alone")
    chosen: Device = device or ("cuda" if torch.cuda.device_count() else "cpu")
    variants = _variants(chosen, names)
    log = EventLog.collect(read_events(list(files), None, None)) if files else None
    model = MeasuredModel(checkpoint, preset_name, log, work)
    config = model.plain.config
    split = LeaveOneOut(target="watch").split(log, _TESTED) if log is not None else None
    evaluation = None if split is None else Evaluation(split, model.plain.catalog.video_ids, (5, 10))
    events = user_events or (median_length(split.test) if split is not None else config.max_events // 2)
    load = Load(users=users, events=min(max(events, 32), config.max_events), repeats=repeats)
    base = EngineOptions(
        checkpoint=model.plain.directory, kv_cache_gib=kv_cache_gib, dummy_weights=model.dummy
    )
    console = Console(width=_COLUMNS)
    console.print(f"machine: {machine()}", highlight=False)
    console.print(f"{model.plain.name}: {users} users with {load.events} events each", highlight=False)
    found: list[Measured] = []
    for variant in variants:
        found.append(_measure(variant, model, base, load, chosen, evaluation, log))
        console.print(_line(found[-1]), highlight=False, markup=False)
        if out is not None:  # as it comes: a later variant may take the machine down
            out.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    console.print(_table(found, evaluation))


def _variants(device: Device, names: tuple[str, ...]) -> list[Variant]:
    known = {variant.name: variant for variant in VARIANTS[device]}
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint="--variant")
    return [known[name] for name in names or known]


def _measure(
    variant: Variant,
    model: MeasuredModel,
    base: EngineOptions,
    load: Load,
    device: Device,
    evaluation: Evaluation | None,
    log: EventLog | None,
) -> Measured:
    try:
        checkpoint = model.by(variant.method)
    except InputError as error:
        return Measured(variant.name, failure=str(error))
    options = variant.options(base, checkpoint)
    profiles = None if log is None else log.profiles
    return asyncio.run(measure(variant.name, options, checkpoint, load, device, evaluation, profiles))


def _line(measured: Measured) -> str:
    return f"{measured.name}: {measured.failure or 'measured'}"


def _table(found: list[Measured], evaluation: Evaluation | None) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("format")
    for heading in (_METRIC, "change", "fresh, ms", "one event more, ms", "model, GiB"):
        table.add_column(heading, justify="right")
    baseline = next((measured for measured in found if measured.quality is not None), None)
    for measured in found:
        figure, changed = "-", "-"
        if measured.quality is not None and baseline is not None and evaluation is not None:
            figure = f"{measured.quality.slices[ALL].metrics[_METRIC].value:.4f}"
            difference = change(measured, baseline, evaluation, _METRIC)
            changed = "-" if difference is None else f"{difference[0]:+.4f} ± {difference[1]:.4f}"
        speed = measured.speed
        table.add_row(
            measured.name,
            figure,
            changed,
            *(
                ("-", "-", "-")
                if speed is None
                else (f"{speed.fresh_ms:,.1f}", f"{speed.cached_ms:,.1f}", f"{speed.model_gib:,.2f}")
            ),
        )
    return table


if __name__ == "__main__":
    main()
