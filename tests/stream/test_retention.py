"""Promises of stream.retention: who is silent for too long goes, the most silent make room, and nobody else goes."""

from __future__ import annotations

from collections.abc import Iterable

from dict_store import DictStore
from hypothesis import given
from hypothesis import strategies as st
from partitions import like, profile, record_of, running

from schemas.events import Like
from stream.partition import Partition
from stream.retention import Retention, RetentionRules
from stream.stored import read_tail, tail_key

DAY = 86_400_000
START = 1_700_000_000_000
users_heard_of = st.dictionaries(
    st.integers(0, 40), st.tuples(st.integers(0, 100), st.integers(1, 1_000)), min_size=1
)


def one_pass(retention: Retention, users: dict[int, tuple[int, int]]) -> None:
    """Look at every user once, and take those away who are to go."""
    retention.begin_pass()
    for user, (last, nbytes) in list(users.items()):
        if retention.lets_go(last, nbytes):
            del users[user]
    retention.end_pass()


@given(users_heard_of, st.integers(1, 120), st.integers(0, 200))
def test_the_silent_go_and_the_others_stay(users: dict[int, tuple[int, int]], ttl: int, now: int) -> None:
    """After a pass those are left who were heard of within the time, whatever they take."""
    retention = Retention(RetentionRules(ttl_ms=ttl))
    retention.advance(now)
    expected = {user for user, (last, _) in users.items() if last >= now - ttl}
    one_pass(retention, users)
    assert users.keys() == expected


@given(users_heard_of, st.integers(1, 20_000))
def test_two_passes_make_room_for_the_last_heard_of(users: dict[int, tuple[int, int]], ceiling: int) -> None:
    """After two passes what is left fits, nobody left was silent for longer than one who went, no room is wasted."""
    before = dict(users)
    retention = Retention(RetentionRules(max_bytes=ceiling))
    one_pass(retention, users)
    assert users == before
    one_pass(retention, users)
    left = sum(nbytes for _, nbytes in users.values())
    assert left <= ceiling
    gone = before.keys() - users.keys()
    if not gone:
        return
    newest_gone = max(before[user][0] for user in gone)
    assert all(last > newest_gone for last, _ in users.values())
    assert sum(nbytes for _, nbytes in before.values()) > ceiling
    # with all who were as silent as the newest of the gone, it would have been too full
    as_silent = sum(nbytes for last, nbytes in before.values() if last == newest_gone)
    assert left + as_silent > 0.9 * ceiling


@given(st.lists(st.integers(0, 10 * DAY), min_size=1, max_size=30))
def test_time_never_runs_back(times: list[int]) -> None:
    """Late records, and a clock that was set back, bring nobody's end nearer or further."""
    retention = Retention(RetentionRules(ttl_ms=DAY))
    horizon = retention.horizon_ms
    for moment in times:
        retention.advance(moment)
        assert retention.horizon_ms >= horizon
        horizon = retention.horizon_ms
    assert retention.now_ms == max(times)


def test_without_limits_nothing_is_looked_at() -> None:
    """No pass is ever due where nobody is to go."""
    retention = Retention(RetentionRules())
    retention.advance(START)
    assert not retention.is_due


def commit(partition: Partition, store: DictStore, cycles: int = 1) -> None:
    """Commit cycles."""
    for _ in range(cycles):
        if (work := partition.take_work()) is not None:
            store.apply(work.changes, 0)
            partition.committed(work)


def serve_all(partition: Partition) -> None:
    """Every list that is owed is made."""
    while (pending := partition.take_due(float("inf"))) is not None:
        partition.settle(pending)


def fold(partition: Partition, events: Iterable[Like], arrived_ms: int) -> None:
    """Records of these events, which arrive at this time."""
    first = partition.next_offset or 0
    partition.fold(
        [record_of(event, offset, timestamp=arrived_ms) for offset, event in enumerate(events, first)], 0.0
    )


def test_a_partition_lets_silent_users_go_and_keeps_who_is_owed() -> None:
    """Silent users leave store and count; one who is owed a list, was heard of since, or only just came, stays."""
    store = DictStore()
    partition = running(store=store, retention=RetentionRules(ttl_ms=10 * DAY))
    silent = [f"silent-{number}" for number in range(1_200)]  # more than one commit looks at
    fold(partition, [like(user, "e1", timestamp_ms=START) for user in [*silent, "back"]], START)
    serve_all(partition)
    fold(partition, [like("owed", "e1", timestamp_ms=START)], START)
    partition.fold(
        [record_of(profile("told", START + 9 * DAY), partition.next_offset or 0, timestamp=START)], 0.0
    )
    commit(partition, store, 5)
    assert partition.cache.users == 1_203
    fold(partition, [like("back", "e2", timestamp_ms=START + 11 * DAY)], START + 11 * DAY)
    commit(partition, store, 8)
    assert {user for user, _ in store.scan()} == {"back", "owed"}
    assert partition.cache.users == 2
    assert read_tail(store.values[tail_key("back")]).last_ms == START + 11 * DAY


def test_a_time_that_a_producer_made_up_keeps_nobody() -> None:
    """An event from the far future counts from its arrival: its user goes when the others do."""
    store = DictStore()
    partition = running(store=store, retention=RetentionRules(ttl_ms=DAY))
    fold(partition, [like("ada", "e1", timestamp_ms=4_000_000_000_000)], START)
    serve_all(partition)
    commit(partition, store)
    fold(partition, [like("bob", "e1", timestamp_ms=START + 2 * DAY)], START + 2 * DAY)
    commit(partition, store, 3)
    assert {user for user, _ in store.scan()} == {"bob"}


def test_a_partition_stays_below_its_ceiling() -> None:
    """However many users come, what is stored of them stays about the ceiling, and the newest of them are there."""
    store = DictStore()
    ceiling = 200_000
    partition = running(store=store, retention=RetentionRules(max_bytes=ceiling))
    for number in range(4_000):
        moment = START + number * 60_000
        fold(partition, [like(f"u{number}", "e", timestamp_ms=moment)], moment)
        serve_all(partition)
        if number % 50 == 49:
            commit(partition, store, 4)
            kept = {user for user, _ in store.scan()}
            assert f"u{number}" in kept
    commit(partition, store, 10)
    stored = sum(len(key) + len(value) for key, value in store.values.items())
    assert 0.5 * ceiling < stored < 1.2 * ceiling
    numbers = sorted(int(user[1:]) for user, _ in store.scan())
    assert numbers == list(range(numbers[0], 4_000))
