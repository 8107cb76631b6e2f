"""What the engine was to reach, and whether it did."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from mtgr.bench.cases import Case, parse_case
from mtgr.bench.records import HSTU, TRANSFORMER, Device, Setting, System
from mtgr.bench.results import Results

FRESH: Final = tuple(map(parse_case, ("1x100", "4x200", "8x500", "64x200", "256x500")))
"""The fresh rows on which ours is held against vLLM's Llama."""

_CLAIM_LENGTH: Final = 8192


class Verdict(Struct, frozen=True):
    """One aim beside what was measured, None where nothing was."""

    figure: str
    aim: float
    unit: str
    at_most: bool
    """Whether less is better."""
    measured: float | None

    @property
    def reached(self) -> bool | None:
        """None where it is not known."""
        if self.measured is None:
            return None
        return self.measured <= self.aim if self.at_most else self.measured >= self.aim

    @property
    def margin(self) -> float | None:
        """By what share of the aim it was reached, or missed where that is negative."""
        if self.measured is None:
            return None
        share = self.measured / self.aim - 1
        return -share if self.at_most else share


def verdicts(results: Results) -> list[Verdict]:
    """Every aim, with its figure from the engine as it is without further options."""
    gpu = Setting("cuda", "seed-high", "bfloat16")
    found = [_time(results, gpu, text, aim) for text, aim in (("1x100", 3.0), ("4x200", 4.0), ("8x500", 6.0))]
    for case in FRESH:
        aim = 1.5 if case.users >= 64 else 1.0
        measured = ratio(results, gpu, case, "llama")
        found.append(
            Verdict(
                f"{case.title} fresh, against vLLM's Llama of as many parameters", aim, "x", False, measured
            )
        )
    known = parse_case("64x1000+1")
    cached = _median(results, gpu, "ours", known)
    fresh = _median(results, gpu, "ours", parse_case("64x1000"))
    gain = None if cached is None or fresh is None else fresh / cached
    found.append(Verdict(f"{known.title}, against fresh", 20.0, "x", False, gain))
    found.append(_time(results, gpu, "64x1000+1", 8.0))
    found.append(_time(results, gpu, "512x1000+1", 50.0))
    found.append(_time(results, Setting("cuda", "8b", "bfloat16"), "8x500", 80.0))
    found.append(
        Verdict(
            f"HSTU layer against the Transformer layer of FlashAttention 3 at {_CLAIM_LENGTH} tokens",
            5.3,
            "x",
            False,
            layer_ratio(results, "cuda", _CLAIM_LENGTH),
        )
    )
    for name in ("tiny", "small"):
        cpu = Setting("cpu", name, "float32")
        for text, aim in (("64x200", 1.0), ("64x200+1", 6.0)):
            case = parse_case(text)
            measured = ratio(results, cpu, case, "torch")
            found.append(
                Verdict(f"CPU, {name}, {case.title}, engine against plain torch", aim, "x", False, measured)
            )
    return found


def ratio(results: Results, setting: Setting, case: Case, other: System) -> float | None:
    """How many times as long the other system takes as ours."""
    ours, theirs = _median(results, setting, "ours", case), _median(results, setting, other, case)
    return None if ours is None or theirs is None else theirs / ours


def layer_ratio(results: Results, device: Device, length: int) -> float | None:
    """How many times as long the Transformer layer takes as the HSTU layer."""
    times = {one.name: one.milliseconds for one in results.layers(device) if one.length == length}
    if HSTU not in times or TRANSFORMER not in times:
        return None
    return times[TRANSFORMER] / times[HSTU]


def _time(results: Results, setting: Setting, text: str, aim: float) -> Verdict:
    case = parse_case(text)
    name = "" if setting.preset == "seed-high" else f"{setting.preset}, "
    what = "" if case.cached else " fresh"
    return Verdict(f"{name}{case.title}{what}", aim, "ms", True, _median(results, setting, "ours", case))


def _median(results: Results, setting: Setting, system: System, case: Case) -> float | None:
    row = results.row(setting, system, case)
    return None if row is None else row.median
