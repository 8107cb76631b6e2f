"""`make chaos`: faults on purpose, in both deliveries, and what came of it as a report and a section of a document."""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

import click
from chaos_report import write_report, write_section
from chaos_run import Outcome, Plan, Rig, run
from checker import Delivery

_MODES: dict[str, tuple[Delivery, ...]] = {
    "both": ("at_least_once", "exactly_once"),
    "at_least_once": ("at_least_once",),
    "exactly_once": ("exactly_once",),
}
_DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


@click.command()
@click.option("--seed", default=1, show_default=True, help="The same seed makes the same faults and events.")
@click.option("--faults", default=104, show_default=True, help="Faults in all.")
@click.option("--events", default=1_040_000, show_default=True, help="Events in all, at least.")
@click.option("--rate", default=1_000.0, show_default=True, help="Events a second while faults are made.")
@click.option("--mode", type=click.Choice(list(_MODES)), default="both", show_default=True)
@click.option("--document/--no-document", default=True, help="Whether docs/reliability.md gets the figures.")
def main(seed: int, faults: int, events: int, rate: float, mode: str, document: bool) -> None:
    """Strike three daemons and three brokers with one fault after another, and prove that nothing came of it.

    Ends with exit code 1 where a list was lost, came out of order or, exactly once, twice, or anything else was wrong.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that brokers are away is what this is about
    modes = _MODES[mode]
    plans = [
        Plan(
            delivery=delivery, seed=seed, faults=faults // len(modes), events=events // len(modes), rate=rate
        )
        for delivery in modes
    ]
    work = Path(".run/chaos").absolute()
    work.mkdir(parents=True, exist_ok=True)
    outcomes = asyncio.run(_run(plans, Path(tempfile.mkdtemp(prefix="run-", dir=work))))
    write_report(outcomes, work / "report.json")
    text = write_section(outcomes, _DOCUMENT if document else None)
    click.echo(text)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)


async def _run(plans: list[Plan], directory: Path) -> list[Outcome]:
    started = time.monotonic()

    def say(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.0f} s  {text}")

    outcomes = []
    async with Rig(directory).ready() as rig:
        for plan in plans:
            say(f"{plan.delivery}: {plan.faults} faults, {plan.events} events, seed {plan.seed}")
            outcomes.append(await run(rig, plan, say))
            say(f"{plan.delivery}: {len(outcomes[-1].problems)} problems, {outcomes[-1].verdict.figures}")
    return outcomes


if __name__ == "__main__":
    main()
