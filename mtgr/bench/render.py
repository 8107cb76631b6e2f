"""`python -m mtgr.bench.render`: docs/performance.md from records alone; what stands in it below its notes is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from mtgr.bench.aims import Verdict, layer_ratio, ratio, verdicts
from mtgr.bench.cases import Case
from mtgr.bench.records import (
    DENSE,
    HSTU,
    TRANSFORMER,
    Ceilings,
    Device,
    Environment,
    Layer,
    Row,
    Setting,
    System,
    option_text,
    read_records,
)
from mtgr.bench.results import Results
from mtgr.bench.work import Work
from mtgr.errors import InputError

NOTES: Final = "## Notes"
"""The heading below which people write: rendering leaves it as it is."""

SYSTEMS: Final[dict[System, str]] = {
    "ours": "ours",
    "llama": "vLLM's Llama",
    "padded": "padded PyTorch",
    "padded-compiled": "the same, compiled",
    "torch": "plain torch",
}
"""As tables have them."""

_MISSING: Final = ""
_KERNELS: Final = 5
_KERNEL_NAME: Final = 60
_HEADER: Final = """\
# Performance

How long lists take, beside other systems on the same machine in the same run, and how far that is from what the
hardware allows. `make bench-gpu` measures on a GPU and `make bench` on a CPU; both keep their records in `.run/bench`,
of which `make performance` makes this page.

Times are medians of whole batches, from the call to the last list: for ours from histories as packed bytes to ids and
scores, features and the exclusion of seen videos included, through the engine that the daemon uses; for vLLM's Llama
from token ids to its ten best tokens. Users are drawn at random and are others in each batch of a fresh row; in a
cached row they are the same, each with one event more than in the batch before. Weights are random: they cost the same
as trained ones. The floor of a row is the larger of two times: the fewest bytes it must move (weights once, keys and
values once) over the bytes a second of a large copy, and its operations over those of a large matrix product.
"""


def render(results: Results, notes: str = "") -> str:
    """The page; `notes` is what people wrote, its heading included."""
    lines = [_HEADER, *_aims(results)]
    for device, title in (("cuda", "On a GPU"), ("cpu", "On a CPU")):
        if results.settings(device) or results.layers(device):  # type: ignore[arg-type]
            lines += _device(results, device, title)  # type: ignore[arg-type]
    if notes:
        lines.append(notes)
    return "\n".join(lines).rstrip() + "\n"


def notes_of(page: str) -> str:
    """What people wrote into a page."""
    start = page.find(f"\n{NOTES}\n")
    return "" if start < 0 else page[start + 1 :]


def _aims(results: Results) -> Iterator[str]:
    yield from ("## Aims", "", "| figure | aim | measured | |", "|---|---|---|---|")
    for verdict in verdicts(results):
        measured = "not measured" if verdict.measured is None else _figure(verdict.measured, verdict.unit)
        aim = f"{'at most' if verdict.at_most else 'at least'} {verdict.aim:g}{_unit(verdict.unit)}"
        yield f"| {verdict.figure} | {aim} | {measured} | {outcome(verdict)} |"
    yield ""


def outcome(verdict: Verdict) -> str:
    """Reached or missed, and by how much of the aim."""
    if verdict.margin is None:
        return _MISSING
    word = "reached" if verdict.reached else "missed"
    return f"{word} by {abs(verdict.margin):.0%}"


def _device(results: Results, device: Device, title: str) -> Iterator[str]:
    yield from (f"## {title}", "")
    environments = [one for one in results.environments if one.device == device]
    for environment in environments:
        yield from _environment(environment)
    ceilings = results.ceilings(device)
    if ceilings is not None:
        yield (
            f"Ceilings: {ceilings.bytes_per_second / 1e9:,.0f} GB/s read plus written, "
            f"{ceilings.operations_per_second / 1e12:,.2f} TFLOP/s in {ceilings.dtype}."
        )
        yield ""
    settings = results.settings(device)
    for setting in settings:
        yield from _setting(results, setting, ceilings)
    yield from _layers(results, device, ceilings)
    missing = results.missing(device)
    if missing:
        yield from ("Not measured:", "")
        yield from (f"- {one.preset}, {one.what}: {one.reason}" for one in missing)
        yield ""


def _environment(environment: Environment) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    accelerator = "" if environment.accelerator is None else f"{environment.accelerator}; "
    commit = "" if environment.commit is None else f"; commit {environment.commit}"
    yield f"{environment.began}, {accelerator}{environment.machine}; {versions}{commit}:"
    yield from ("", f"    {environment.command}", "")


def _setting(results: Results, setting: Setting, ceilings: Ceilings | None) -> Iterator[str]:
    options = f", {option_text(setting.options)}" if setting.options else ""
    yield from (f"### {setting.preset}, {setting.dtype}{options}", "")
    for one in results.started(setting):
        yield (
            f"- {SYSTEMS[one.system]}: {one.description}; {one.parameters / 1e6:,.1f} million parameters, "
            f"up after {one.seconds:.0f} s"
        )
    yield ""
    yield from _rows(results, setting, ceilings)
    yield from _device_times(results, setting)
    yield from _splits(results, setting)
    yield from _loads(results, setting)
    yield from _memory(results, setting)


def _systems(results: Results, setting: Setting) -> list[System]:
    cases = results.cases(setting)
    return [name for name in SYSTEMS if any(results.row(setting, name, case) for case in cases)]


def _rows(results: Results, setting: Setting, ceilings: Ceilings | None) -> Iterator[str]:
    systems = _systems(results, setting)
    others = [name for name in systems if name != "ours"]
    headings = [
        "users x events",
        *(f"{SYSTEMS[name]}, ms" for name in systems),
        *(f"{SYSTEMS[name]} / ours" for name in others if "ours" in systems),
        "lists/s, ours",
        "floor, ms",
        "ours / floor",
    ]
    yield from _heading(headings)
    for case in results.cases(setting):
        cells = [case.title]
        rows = {name: results.row(setting, name, case) for name in systems}
        cells += [_milliseconds(None if row is None else row.median) for row in rows.values()]
        if "ours" in systems:
            cells += [_times(ratio(results, setting, case, name)) for name in others]
        ours = rows.get("ours")
        cells.append(_MISSING if ours is None else f"{1000 * case.users / ours.median:,.0f}")
        cells += _floor(ours, ceilings)
        yield _cells(cells)
    yield ""


def _floor(row: Row | None, ceilings: Ceilings | None) -> list[str]:
    if row is None or ceilings is None:
        return [_MISSING, _MISSING]
    work = Work(row.bytes, row.operations)
    floor = work.floor_ms(ceilings)
    return [f"{floor:.2f} ({work.bound(ceilings)})", _times(row.median / floor)]


def _device_times(results: Results, setting: Setting) -> Iterator[str]:
    found: list[tuple[Case, System]] = [
        (case, system)
        for case in results.cases(setting)
        for system in SYSTEMS
        if results.device_time(setting, system, case)
    ]
    if not found:
        return
    yield "Time of the engine against time of the device, by a profiler; what it costs is in the batch's time:"
    yield ""
    yield from _heading(
        ("users x events", "system", "batch, ms", "device busy, ms", "busy", "longest kernels, ms")
    )
    for case, system in found:
        one = results.device_time(setting, system, case)
        assert one is not None
        kernels = "; ".join(
            f"`{kernel.name[:_KERNEL_NAME]}` {kernel.milliseconds:.2f}" for kernel in one.kernels[:_KERNELS]
        ).replace("|", "/")
        yield _cells(
            [
                case.title,
                SYSTEMS[system],
                _milliseconds(one.batch_ms),
                _milliseconds(one.busy_ms),
                f"{one.busy_ms / one.batch_ms:.0%}",
                kernels,
            ]
        )
    yield ""


def _splits(results: Results, setting: Setting) -> Iterator[str]:
    found = [one for case in results.cases(setting) if (one := results.split(setting, case))]
    if not found:
        return
    yield (
        "Where our time goes, in ms one after the other: until the first new events are encoded, until the worker has "
        "them, until it has launched the model, until the last list is made, and until the caller has it:"
    )
    yield ""
    yield from _heading(("users x events", "encode", "send", "prepare", "compute", "answer", "together"))
    for one in found:
        parts = (one.encode, one.send, one.prepare, one.compute, one.answer, one.total)
        yield _cells([one.case.title, *(_milliseconds(part) for part in parts)])
    yield ""


def _loads(results: Results, setting: Setting) -> Iterator[str]:
    loads = [one for name in SYSTEMS if (one := results.load(setting, name))]
    if not loads:
        return
    yield (
        f"A stream of events, each a list: {loads[0].users} users with {loads[0].events} events cached. Saturated "
        "first, then events that arrive at random at half of that rate:"
    )
    yield ""
    yield from _heading(
        ("system", "lists/s", "offered, lists/s", "served, lists/s", "p50, ms", "p99, ms", "lists")
    )
    for one in loads:
        rates = (one.lists_per_second, one.offered_per_second, one.served_per_second)
        yield _cells(
            [
                SYSTEMS[one.system],
                *(f"{rate:,.0f}" for rate in rates),
                f"{one.p50_ms:.1f}",
                f"{one.p99_ms:.1f}",
                f"{one.arrivals:,}",
            ]
        )
    yield ""


def _memory(results: Results, setting: Setting) -> Iterator[str]:
    held = [one for name in SYSTEMS if (one := results.memory(setting, name))]
    if not held:
        return
    yield "Most memory in tensors, in GiB (on a CPU, that of the engine's process):"
    yield ""
    yield from _heading(("system", "peak", "of that KV cache, as set", "the rest"))
    for one in held:
        sizes = (one.peak_bytes, one.cache_bytes, one.peak_bytes - one.cache_bytes)
        yield _cells([SYSTEMS[one.system], *(f"{size / 2**30:.2f}" for size in sizes)])
    yield ""


def _layers(results: Results, device: Device, ceilings: Ceilings | None) -> Iterator[str]:
    layers = results.layers(device)
    if not layers:
        return
    contents = {one.name: one.contents for one in layers}
    yield from ("### One layer, forward", "")
    yield from (f"- {name}: {text}" for name, text in contents.items())
    yield ""
    yield (
        "The two floors' ratio is how many times as long the Transformer layer would take if both ran as fast as the "
        "hardware allows: its MLP and the wider projection are the difference, the attention is the same work."
    )
    yield ""
    names = [name for name in (HSTU, TRANSFORMER, DENSE) if name in contents]
    yield from _heading(
        (
            "tokens x sequences",
            *(f"{name}, ms" for name in names),
            "Transformer / HSTU",
            "floors' ratio",
            f"{HSTU} / floor",
            f"{TRANSFORMER} / floor",
        )
    )
    for length in sorted({one.length for one in layers}):
        at = {one.name: one for one in layers if one.length == length}
        yield _cells(
            [
                f"{length} x {next(iter(at.values())).sequences}",
                *(_layer_ms(at.get(name)) for name in names),
                _times(layer_ratio(results, device, length)),
                *_layer_floors(at, ceilings),
            ]
        )
    yield ""


def _layer_ms(layer: Layer | None) -> str:
    return _MISSING if layer is None else f"{layer.milliseconds:.3f}"


def _layer_floors(at: dict[str, Layer], ceilings: Ceilings | None) -> list[str]:
    if ceilings is None or HSTU not in at or TRANSFORMER not in at:
        return [_MISSING] * 3
    floors = {
        name: Work(at[name].bytes, at[name].operations).floor_ms(ceilings) for name in (HSTU, TRANSFORMER)
    }
    return [
        _times(floors[TRANSFORMER] / floors[HSTU]),
        *(_times(at[name].milliseconds / floors[name]) for name in (HSTU, TRANSFORMER)),
    ]


def _heading(headings: Sequence[str]) -> Iterator[str]:
    yield _cells(headings)
    yield "|" + "---|" * len(headings)


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float, unit: str) -> str:
    return f"{value:.2f}{_unit(unit)}"


def _unit(unit: str) -> str:
    return unit if unit == "x" else f" {unit}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return _MISSING
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _times(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}x"


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), default=Path("docs/performance.md"))
def main(records: tuple[Path, ...], page: Path) -> None:
    """Write the page from files of records, the newest last; what stands below its notes is kept."""
    notes = notes_of(page.read_text()) if page.exists() else ""
    page.write_text(render(Results(read_records(records)), notes))
    click.echo(f"{page} is written")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        raise SystemExit(f"render: {error.format_message()}") from None
    except InputError as error:
        raise SystemExit(f"render: {error}") from None
