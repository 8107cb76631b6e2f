"""`python -m mtgr.bench`: measure the engine beside other systems, and write what was found down as it comes."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec

from mtgr.bench.cases import CPU_CASES, GPU_CASES, Case, parse_cases
from mtgr.bench.plan import DEFAULT_PRESETS, NUMBER_BYTES, Plan
from mtgr.bench.records import Device
from mtgr.bench.run import parts, run
from mtgr.bench.sections import SECTIONS
from mtgr.bench.summary import summary
from mtgr.errors import InputError
from mtgr.presets import preset

_DEVICES: tuple[Device, ...] = ("cuda", "cpu")
_LOAD_USERS: dict[Device, int] = {"cuda": 512, "cpu": 0}
_QUICK_REPEATS = 3
_LEAST_SECONDS = 1.0


def _names(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",")) if value else ()
    for name in names:
        if name not in SECTIONS:
            raise click.BadParameter(f"{name!r} is no part; they are {', '.join(SECTIONS)}")
    return names


def _cases(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Case, ...]:
    try:
        return parse_cases(value) if value else ()
    except InputError as error:
        raise click.BadParameter(str(error)) from None


def _numbers(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: numbers with commas between them are wanted") from None


def _options(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    options = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r}: NAME=VALUE is wanted")
        try:
            options[name] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            options[name] = text
    return options


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Records, appended."
)
@click.option("--device", type=click.Choice(_DEVICES), default="cuda", show_default=True)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    help="Model; may be repeated.  [default: seed-high; CPU: tiny, small]",
)
@click.option("--dtype", type=click.Choice(list(NUMBER_BYTES)), help="[default: bfloat16; CPU: float32]")
@click.option(
    "--only", callback=_names, help=f"Parts: {', '.join(SECTIONS)}.  [default: those of the device]"
)
@click.option("--cases", callback=_cases, help="Rows, as in 1x100,64x1000+1.")
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Batches of a row.")
@click.option("--quick", is_flag=True, help="Few repeats and a short load: to see whether all works.")
@click.option("--load-users", type=click.IntRange(0), help="0 for no load.  [default: 512; CPU: 0]")
@click.option(
    "--load-events", type=click.IntRange(1), default=1000, show_default=True, help="That each has cached."
)
@click.option(
    "--load-seconds", type=click.FloatRange(0.1), default=6.0, show_default=True, help="Of each phase."
)
@click.option("--layer-lengths", callback=_numbers, default="512,1024,2048,4096,8192", show_default=True)
@click.option("--layer-tokens", type=click.IntRange(1), default=16_384, show_default=True)
@click.option(
    "--option", "options", multiple=True, callback=_options, help="NAME=VALUE of the engine's options."
)
@click.option(
    "--limit", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds of the run."
)
def main(
    out: Path,
    device: Device,
    presets: tuple[str, ...],
    dtype: str | None,
    only: tuple[str, ...],
    cases: tuple[Case, ...],
    repeats: int,
    quick: bool,
    load_users: int | None,
    load_events: int,
    load_seconds: float,
    layer_lengths: tuple[int, ...],
    layer_tokens: int,
    options: dict[str, Any],
    limit: float,
) -> None:
    """Measure the engine beside other systems on this machine: one run, medians, records in OUT."""
    cpu = device == "cpu"
    command = shlex.join(["python", "-m", "mtgr.bench", *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        plans = [
            Plan(
                device=device,
                preset=name,
                dtype=dtype or ("float32" if cpu else "bfloat16"),
                cases=cases or (CPU_CASES if cpu else GPU_CASES),
                layer_lengths=layer_lengths,
                layer_tokens=layer_tokens,
                repeats=_QUICK_REPEATS if quick else repeats,
                load_users=_LOAD_USERS[device] if load_users is None else load_users,
                load_events=load_events,
                load_seconds=_LEAST_SECONDS if quick else load_seconds,
                options=options,
                directory=Path(scratch),
                out=out.absolute(),
                command=command,
            )
            for name in presets or DEFAULT_PRESETS[device]
        ]
        for plan in plans:
            preset(plan.preset)
        found = run(plans, parts(device, only), limit, click.echo)
    for line in summary(found):
        click.echo(line)


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (click.ClickException, InputError) as error:
        raise SystemExit(
            f"bench: {error.format_message() if isinstance(error, click.ClickException) else error}"
        ) from None
