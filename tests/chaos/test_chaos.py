"""A short chaos run: what `make chaos` does for a quarter of an hour, with a few faults in both deliveries."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos_report import BEGIN, END, as_record, write_report, write_section
from chaos_run import Outcome, Plan, Rig, run
from checker import Delivery, Kind, Verdict

from stream.demo.broker import KafkaUnavailable

_STRIKES: dict[Delivery, tuple[tuple[str, ...], ...]] = {
    "exactly_once": (
        ("daemon killed", "network slow"),
        ("daemon frozen", "engine crashed"),
        ("broker killed",),
    ),
    "at_least_once": (
        ("broker killed", "daemon terminated"),
        ("network held", "leaders moved"),
        ("rebalance storm", "connections cut"),
    ),
}


@pytest.mark.broker
async def test_nothing_is_lost_whatever_fails(tmp_path: Path) -> None:
    """Three daemons on three brokers, struck under traffic: each owed list is there, in order, once where that was
    promised, states are the pure fold, and no offset was ever committed past them."""
    try:
        rig = Rig(tmp_path / "rig")
    except KafkaUnavailable as missing:
        pytest.skip(f"a Kafka of three brokers needs this machine's own Java: {missing}")
    async with rig.ready():
        for delivery, strikes in _STRIKES.items():
            plan = Plan(
                delivery=delivery, seed=1, faults=0, events=8_000, rate=700, users=600, strikes=strikes
            )
            outcome = await run(rig, plan, print)
            assert not outcome.problems, outcome.problems
            figures = outcome.verdict.figures
            assert figures["events"] > 7_000
            assert figures["lists_distinct"] > 1_000
            assert figures["offset_samples"] > 10
            assert outcome.faults == sum(map(len, strikes))


def test_the_report_tells_what_was_found_and_replaces_the_last_one(tmp_path: Path) -> None:
    """Written twice, a document has one section, and the text around it stays."""
    verdict = Verdict("exactly_once")
    verdict.found(Kind.LOST, "a list")
    verdict.figures |= {"records": 12_345, "events": 5, "lists": 4, "offset_samples": 3}
    outcome = Outcome(
        plan=Plan(delivery="exactly_once", seed=9, faults=0, events=5, rate=1),
        strikes=[],
        seconds=60,
        verdict=verdict,
        ended_by_themselves=[],
        skipped=[],
    )
    document = tmp_path / "page.md"
    document.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_section([outcome], document)
    text = write_section([outcome], document)
    assert "| records sent | 12,345 |" in text
    assert document.read_text() == f"before\n\n{BEGIN}\n\n{text}\n\n{END}\n\nafter\n"
    write_report([outcome], tmp_path / "report.json")
    assert as_record(outcome)["problems"] == ["lost: a list"]
