"""What drives a system under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mtgr.bench.load import Callers, open_loop, saturate


async def test_every_event_that_arrives_gets_one_list_and_waits_for_it_no_negative_time() -> None:
    """Users come in turn, no call asks for a user twice or for more lists than it may."""
    calls: list[list[int]] = []

    async def serve(numbers: Sequence[int]) -> None:
        calls.append(list(numbers))

    latencies, served = await open_loop(serve, 8, Callers(2, 4), rate=5_000, seconds=0.1, rounds=1_000)
    asked = [number for call in calls for number in call]
    assert len(asked) == len(latencies) == 500
    assert asked == [number % 8 for number in range(500)]
    assert max(map(len, calls)) <= 4
    assert all(len(set(call)) == len(call) for call in calls)
    assert latencies.min() >= 0
    assert served > 0


async def test_users_get_no_more_lists_than_their_histories_may_grow() -> None:
    """A history that became too long would be refused."""
    lists: Counter[int] = Counter()

    async def serve(numbers: Sequence[int]) -> None:
        lists.update(numbers)

    await open_loop(serve, 4, Callers(1, 4), rate=1e6, seconds=1.0, rounds=3)
    assert max(lists.values()) <= 3
    lists.clear()
    rate = await saturate(serve, 10, Callers(3, 2), seconds=60.0, rounds=5)
    assert set(lists) == set(range(10))
    assert set(lists.values()) == {5}
    assert rate > 0
