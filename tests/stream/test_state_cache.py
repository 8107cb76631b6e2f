"""Promises of stream.state_cache: a state is always the latest one, and memory stays bounded."""

from __future__ import annotations

from dict_store import DictStore
from hypothesis import given
from hypothesis import strategies as st
from states import facts, fold
from strategies import ODD_IDS

from stream.sequences import UserState
from stream.state_cache import StateCache


class CountingCache(StateCache):
    """A StateCache that counts its turns, each of which looks at every state in memory."""

    turns = 0

    def _turn(self) -> None:
        self.turns += 1
        super()._turn()

    @property
    def states(self) -> dict[str, UserState]:
        return {**self._old, **self._young}


def commit(store: DictStore, states: list[UserState]) -> None:
    for state in states:
        store.apply(state.changes(), 0)
    for state in states:
        state.writing -= 1


@given(
    st.lists(
        st.tuples(st.sampled_from(ODD_IDS), st.integers(1, 6), st.booleans(), st.booleans()), max_size=80
    ),
    st.integers(1, 20_000),
)
def test_the_cache_hides_the_store(steps: list[tuple[str, int, bool, bool]], ceiling: int) -> None:
    """Through any evictions a state is always the latest one, and one that the store lacks is never dropped."""
    store = DictStore()
    cache = CountingCache(store, ceiling)
    expected: dict[str, UserState] = {}
    dirty: dict[str, UserState] = {}
    for user, events, serve, write in steps:
        state = cache.get(user)
        if user in expected and expected[user].pinned:
            assert state is expected[user]
        mirror = expected.get(user)
        assert mirror is None or facts(state) == facts(mirror)
        fold(state, events)
        if serve and state.unserved:
            state.ask()
            state.served()
        if state.dirty:
            dirty[user] = state
        expected[user] = state
        cache.grew(40 * events)
        if write:
            commit(store, list(dirty.values()))
            dirty.clear()
    assert cache.users == len(expected)
    held = cache.states
    for user, state in expected.items():
        assert not state.pinned or held[user] is state


def test_memory_stays_near_the_ceiling() -> None:
    """However many users are touched, states that the store holds take no more than about the ceiling."""
    store, ceiling = DictStore(), 200_000
    cache = CountingCache(store, ceiling)
    most = 0
    for number in range(3_000):
        state = cache.get(f"u{number}")
        before = state.nbytes
        fold(state, 5)
        cache.grew(state.nbytes - before)
        state.ask()
        state.served()
        commit(store, [state])
        most = max(most, sum(held.nbytes for held in cache.states.values()))
        assert cache.nbytes <= 1.1 * ceiling
    assert ceiling / 3 < most <= 1.1 * ceiling


def test_users_in_use_stay_at_hand() -> None:
    """A user who comes again and again is not read from the store again, whoever else passes through."""
    store = DictStore()
    cache = CountingCache(store, 100_000)
    often = cache.get("often")
    for number in range(1_000):
        commit(store, [cache.get(f"u{number}")])
        if number % 10 == 0:
            assert cache.get("often") is often
        held = sum(state.nbytes for state in cache.states.values())
        assert held * 0.9 <= cache.nbytes <= held * 1.1
    assert cache.turns > 3


def test_states_that_cannot_be_dropped_do_not_slow_the_cache() -> None:
    """With more owed lists than the ceiling holds, looking a user up does not look at all the others each time."""
    cache = CountingCache(DictStore(), 50_000)
    users = [f"u{number}" for number in range(2_000)]
    for user in users:
        fold(cache.get(user), 1)
    assert len(cache.states) == len(users)
    cache.turns = 0
    for _ in range(3):
        for user in users:
            cache.get(user)
    assert cache.turns < 50
    assert len(cache.states) == len(users)


def test_users_who_are_owed_a_list_do_not_fill_the_memory() -> None:
    """Who waits for a list may be read from the store again, with what is owed; only whose list is being made stays."""
    store, ceiling = DictStore(), 200_000
    cache = CountingCache(store, ceiling)
    asked = cache.get("asked")
    fold(asked, 5)
    asked.ask()
    commit(store, [asked])
    for number in range(3_000):
        state = cache.get(f"u{number}")
        before = state.nbytes
        fold(state, 5)
        cache.grew(state.nbytes - before)
        commit(store, [state])
        assert cache.nbytes <= 1.1 * ceiling
    assert cache.get("asked") is asked
    assert cache.get("u0").unserved == 5
