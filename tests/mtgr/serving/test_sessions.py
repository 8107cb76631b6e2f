"""What a session leaves in the cache is what its user's history would be computed to, whatever came between."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from histories import interactions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from serving import list_request

from mtgr.attributes import unpack_attributes
from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.features import RowEncoder
from mtgr.history import RECORD_BYTES, History
from mtgr.requests import ListRefusal, ListRequest, ListResult
from mtgr.serving.session_batches import Batch, BatchPlanner
from mtgr.serving.session_steps import Answer, Step, decode_steps, encode_steps
from mtgr.serving.sessions import NULL_BLOCK, OutOfBlocks, SessionTable

BLOCK = 4


class Cache:
    """A KV cache that keeps the rows themselves where an engine keeps what it makes of them."""

    def __init__(self, checkpoint: Checkpoint, blocks: int) -> None:
        self.rows = np.full((blocks * BLOCK, checkpoint.config.row_width), np.nan, np.float32)
        self.items = np.full(blocks * BLOCK, 99, np.int32)

    def run(self, step: Step) -> list[tuple[Any, Any, int]]:
        """Store a step's tokens; returns the rows and items that each ending request then has, and its count."""
        cached, new, counts = (np.frombuffer(part, np.int32) for part in (step.cached, step.new, step.counts))
        blocks = np.frombuffer(step.blocks, np.int32).reshape(len(new), -1)
        rows = np.frombuffer(step.rows, np.float32).reshape(new.sum(), -1)
        items = np.frombuffer(step.items, np.int32)
        end = 0
        for place in range(len(new)):
            begin, end = end, end + new[place]
            slots = self._slots(blocks[place], np.arange(cached[place], cached[place] + new[place]))
            self.rows[slots], self.items[slots] = rows[begin:end], items[begin:end]
        made = []
        for place in np.flatnonzero(counts):  # after all are stored, as in an engine
            slots = self._slots(blocks[place], np.arange(cached[place] + new[place]))
            made.append((self.rows[slots], self.items[slots], int(counts[place])))
        return made

    @staticmethod
    def _slots(blocks: Any, positions: Any) -> Any:
        used = blocks[positions // BLOCK]
        assert (used != NULL_BLOCK).all()
        return used * BLOCK + positions % BLOCK


class Front:
    """A planner and the cache it plans for; every list is checked against the whole history encoded anew."""

    def __init__(self, checkpoint: Checkpoint, cache: Cache, step_tokens: int, step_requests: int) -> None:
        self.checkpoint, self.cache = checkpoint, cache
        self.encoder = RowEncoder(checkpoint.config, checkpoint.catalog)
        self.planner = BatchPlanner(
            checkpoint,
            SessionTable(len(cache.items) // BLOCK, BLOCK),
            step_tokens=step_tokens,
            step_requests=step_requests,
            batch_tokens=2 * step_tokens,
            batch_requests=4,
        )

    def ask(self, requests: Sequence[ListRequest]) -> list[Batch]:
        batches = []
        while requests:
            batch = self.planner.plan(requests)
            assert batch.taken > 0
            self._check(batch, batch.steps)
            batches.append(batch)
            requests = requests[batch.taken :]
        return batches

    def _check(self, batch: Batch, steps: Sequence[Step]) -> None:
        made = [one for step in decode_steps(encode_steps(list(steps))) for one in self.cache.run(step)]
        for piece, (rows, items, count) in zip(batch.pieces, made, strict=True):
            request = piece.request
            wanted = self.encoder.encode(
                History.from_bytes(request.records, request.videos), unpack_attributes(request.profile)
            )
            np.testing.assert_array_equal(rows, wanted.rows)
            known = np.where(wanted.token_ids < self.checkpoint.config.n_slots, wanted.token_ids, -1)
            np.testing.assert_array_equal(items, known)
            assert count == request.count


@pytest.fixture(scope="module")
def catalog_of(checkpoints: dict[str, Checkpoint]) -> Any:
    """A fresh copy of the richest checkpoint: videos join its catalog."""
    return lambda: open_checkpoint(checkpoints["everything"].directory)


def requests_of(chance: random.Random, users: dict[str, Any]) -> list[ListRequest]:
    """Some users' next requests: events appended, none at all, a cut, a corrected past, another profile."""
    requests = []
    for user in chance.sample(sorted(users), chance.randint(1, len(users))):
        state = users[user]
        happened = chance.random()
        if happened < 0.6:
            state["end"] = min(state["end"] + chance.randint(1, 9), len(state["events"]))
        elif happened < 0.7:
            state["begin"] = min(state["begin"] + 16, state["end"] - 1)
        elif happened < 0.8:
            state["events"][chance.randrange(state["begin"], state["end"])] = interactions(
                chance.randrange(10**6), 1, user
            )[0]
        elif happened < 0.85:
            state["profile"] = {"age": chance.randint(10, 90)}
        state["begin"] = max(state["begin"], state["end"] - 80)
        events = state["events"][state["begin"] : state["end"]]
        strategy = chance.choice(["topk", "slate"])
        requests.append(list_request(events, chance.randint(1, 12), strategy, state["profile"]))
    return requests


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(36, 90), st.sampled_from([7, 30, 200]), st.sampled_from([2, 50]))
def test_what_a_list_is_made_of_is_always_the_whole_history(
    catalog_of: Any, seed: int, blocks: int, step_tokens: int, step_requests: int
) -> None:
    """Appends, evictions, cuts, corrections, new videos and restarts in any order: the cache holds, for each list, what
    computing everything anew would put there."""
    chance = random.Random(seed)
    checkpoint = catalog_of()
    cache = Cache(checkpoint, blocks)
    front = Front(checkpoint, cache, step_tokens, step_requests)
    users = {
        f"u{place}": {
            "events": interactions(chance.randrange(10**6), 150, f"u{place}"),
            "begin": 0,
            "end": chance.randint(1, 70),
            "profile": {},
        }
        for place in range(6)
    }
    for state in users.values():  # a video that is not in the catalog yet
        state["events"][0] = replace(state["events"][0], video_id="new")
    for step in range(14):
        front.ask(requests_of(chance, users))
        if step == 5:
            checkpoint.catalog.add("new")
            front.planner.table.forget_watchers(["new"])
        if step == 9:  # the front end is another one, the cache is full of what the old one left
            front = Front(checkpoint, cache, step_tokens, step_requests)


def test_only_what_is_new_is_computed(catalog_of: Any) -> None:
    """One event more is one row more; a list asked for again computes the last one only."""
    checkpoint = catalog_of()
    front = Front(checkpoint, Cache(checkpoint, 100), 200, 50)
    events = interactions(1, 40, "u")
    sent = []
    for length in (30, 31, 31, 40):
        (batch,) = front.ask([list_request(events[:length])])
        sent.append(
            (batch.pieces[0].cached, sum(np.frombuffer(step.new, np.int32).sum() for step in batch.steps))
        )
    assert sent == [(0, 31), (31, 1), (31, 1), (32, 9)]


def test_a_refused_request_costs_its_neighbours_nothing(catalog_of: Any) -> None:
    """Corrupt events are found out before anything is sent, and only their request is refused."""
    checkpoint = catalog_of()
    front = Front(checkpoint, Cache(checkpoint, 100), 200, 50)
    good = [list_request(interactions(place, 20, f"u{place}")) for place in range(3)]
    front.ask(good)
    broken = bytearray(list_request(interactions(7, 20, "bad")).records)
    broken[19 * RECORD_BYTES + 18] = 77  # no event type
    bad = ListRequest("bad", bytes(broken), list_request(interactions(7, 20, "bad")).videos, 10)
    (batch,) = front.ask([good[0], bad, good[1], good[2]])
    assert batch.taken == 4
    assert set(batch.refusals) == {1}
    assert "event type of event 19 is 77" in batch.refusals[1].message
    assert [piece.place for piece in batch.pieces] == [0, 2, 3]
    (batch,) = front.ask(good)
    assert [piece.cached for piece in batch.pieces] == [20, 20, 20]


def test_a_batch_is_sent_when_it_has_enough_users(catalog_of: Any) -> None:
    """So that the engine begins while the others are encoded, and all in their order."""
    checkpoint = catalog_of()
    front = Front(checkpoint, Cache(checkpoint, 200), 200, 50)
    batches = front.ask([list_request(interactions(place, 5, f"u{place}")) for place in range(10)])
    assert [batch.taken for batch in batches] == [4, 4, 2]


def test_the_user_served_longest_ago_goes_first() -> None:
    """Blocks come from whoever was not asked for, and never from those that must stay."""
    table = SessionTable(blocks=7, block_size=BLOCK)
    sessions = [table.begin(name, b"") for name in "abc"]
    for session in sessions:
        table.reserve(session, 2 * BLOCK, staying=())
    assert table.free_blocks == 0
    table.reserve(sessions[0], 2 * BLOCK, staying=())  # used again
    fresh = table.begin("d", b"")
    table.reserve(fresh, 3 * BLOCK, staying={sessions[2]})
    assert not sessions[1].blocks  # the oldest
    assert not sessions[0].blocks  # one was not enough
    assert (table.evictions, len(table), table.free_blocks) == (2, 2, 1)
    with pytest.raises(OutOfBlocks, match="3 blocks are wanted, and 1 are free"):
        table.reserve(table.begin("e", b""), 3 * BLOCK, staying={fresh, sessions[2]})


def test_answers_are_read_in_the_order_of_their_requests(catalog_of: Any) -> None:
    """Each request gets as many videos as it asked for; scores that are no numbers are refused."""
    checkpoint = catalog_of()
    front = Front(checkpoint, Cache(checkpoint, 100), 200, 50)
    requests = [list_request(interactions(place, 5, f"u{place}"), 2 + place) for place in range(3)]
    (batch,) = front.ask(requests)
    items = np.arange(9, dtype=np.int32)
    scores = -np.arange(9, dtype=np.float32)
    scores[3] = np.nan
    outcomes = dict(front.planner.read(batch, Answer(items.tobytes(), scores.tobytes())))
    assert outcomes[0] == ListResult(["v0", "v1"], [0.0, -1.0], 5, 0)
    assert isinstance(outcomes[1], ListRefusal)
    assert outcomes[2] == ListResult(["v5", "v6", "v7", "v8"], [-5.0, -6.0, -7.0, -8.0], 5, 0)
