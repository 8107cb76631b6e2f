"""A bounded cache of user states above the store of one partition."""

from __future__ import annotations

from stream.sequences import UserState
from stream.state import StateStore


class StateCache:
    """The states of one partition: found in memory, else loaded from the store, else new.

    Two generations stand in for an LRU list: a state that was used since the last turn is in the young one, and a
    look-up there costs nothing more. When the young one fills half the ceiling, what is left in the old one is dropped,
    but for states that the store cannot give back yet.
    """

    def __init__(self, store: StateStore, ceiling_bytes: int) -> None:
        self._store = store
        self._half = max(ceiling_bytes // 2, 1)
        self._young: dict[str, UserState] = {}
        self._old: dict[str, UserState] = {}
        self._young_bytes = 0
        self._old_bytes = 0
        self._turn_bytes = self._half  # of the young generation, at which the next turn comes
        self.users = 0

    @property
    def nbytes(self) -> int:
        """Roughly the memory that cached states take."""
        return self._young_bytes + self._old_bytes

    def get(self, user_id: str) -> UserState:
        """The state of a user; raises CorruptState if what is stored does not read back."""
        state = self._young.get(user_id)
        if state is not None:
            return state
        state = self._old.pop(user_id, None)
        if state is not None:
            self._old_bytes -= state.nbytes
        else:
            state = self._store.load(user_id)
            if state is None:
                state = UserState(user_id)
                self.users += 1
        self._young[user_id] = state
        self._young_bytes += state.nbytes
        if self._young_bytes > self._turn_bytes:
            self._turn()
        return state

    def drop(self, state: UserState) -> None:
        """Remember a user of whom nothing is kept no longer, once that is what the store says too."""
        if state.pinned or not state.is_empty:
            return
        for generation in (self._young, self._old):
            if generation.get(state.user_id) is state:
                del generation[state.user_id]
                self.users -= 1
                if generation is self._young:
                    self._young_bytes -= state.nbytes
                else:
                    self._old_bytes -= state.nbytes

    def grew(self, nbytes: int) -> None:
        """States in memory grew by this much in all."""
        self._young_bytes += nbytes

    def _turn(self) -> None:
        kept = {user_id: state for user_id, state in self._old.items() if state.pinned}
        self._old, self._young = self._young, kept
        self._old_bytes = sum(state.nbytes for state in self._old.values())
        self._young_bytes = sum(state.nbytes for state in kept.values())
        # what must stay may fill the half by itself: a turn looks at every state, and must not come at every look-up
        self._turn_bytes = max(self._half, self._young_bytes * 3 // 2)
