"""Steps of a part that may fail alone: the next one is still measured."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable

from mtgr.bench.plan import Plan
from mtgr.bench.records import Missing, RecordFile
from mtgr.errors import EngineFailed


async def attempt(plan: Plan, records: RecordFile, what: str, step: Awaitable[None]) -> None:
    """Do a step; if it fails, write down that `what` is missing and go on, unless the engine is gone: EngineFailed."""
    try:
        await step
    except EngineFailed:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, what was paid for is still to be measured
        traceback.print_exc()
        records.add(Missing(plan.device, plan.preset, what, f"{type(error).__name__}: {error}"[:300]))
