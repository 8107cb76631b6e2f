"""Promises of mtgr.serving.session_lists: whoever waits for a list gets an answer, whatever goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mtgr.errors import EngineFailed
from mtgr.requests import ListRequest
from mtgr.serving.session_batches import Batch
from mtgr.serving.session_lists import SessionLists


class Planner:
    """A planner with a mistake in one of its steps."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def plan(self, requests: Sequence[ListRequest]) -> Batch:
        if self._broken == "plan":
            raise TypeError("planted")
        return Batch(taken=1)

    def read(self, batch: Batch, answer: Any) -> Any:
        raise TypeError("planted")


@pytest.mark.parametrize("broken", ["plan", "read"])
async def test_a_mistake_in_planning_is_a_failure_of_the_engine_and_nobody_waits_for_ever(
    broken: str,
) -> None:
    """Whoever asked, and whoever asks later, is told that the engine failed; its owner starts another."""
    planner: Any = Planner(broken)
    lists = SessionLists(planner, lambda packed: asyncio.get_running_loop().create_future())
    requests = [ListRequest("a", b"", b"", 3), ListRequest("b", b"", b"", 3)]
    async with asyncio.timeout(20):
        with pytest.raises(EngineFailed, match="TypeError: planted"):
            await lists.recommend(requests)
        with pytest.raises(EngineFailed, match="TypeError: planted"):
            await lists.recommend(requests)
