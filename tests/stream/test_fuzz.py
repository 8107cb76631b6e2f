"""Spoilt records by the ten thousand: none breaks decoder or partition, none is lost, none is taken for a valid one.

FUZZ_RECORDS sets how many (`make fuzz` takes 200,000), FUZZ_SEED which.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections import Counter

import pytest
from dict_store import DictStore
from mutations import BOMBS, Mutator
from partitions import running

from schemas.codecs import CONTENT_TYPE_HEADER, MESSAGEPACK, decode_event, decode_video
from schemas.errors import UndecodableEvent, UndecodableVideo
from schemas.events import Profile
from stream.sequences import UserState

RECORDS = int(os.environ.get("FUZZ_RECORDS", "15000"))
SEED = int(os.environ.get("FUZZ_SEED", "6"))
BATCH = 500
MAX_BYTES = 65_536
MAX_EVENTS = 32


def test_every_record_is_folded_or_dead_lettered(record_property: pytest.RecordProperty) -> None:
    """What decodes is folded as a pure fold folds it, all else is a dead letter with its own bytes, in bounded time."""
    store = DictStore()
    partition = running(store=store, max_event_bytes=MAX_BYTES, max_events=MAX_EVENTS)
    mutator = Mutator(SEED)
    expected: dict[str, UserState] = {}
    counts: Counter[str] = Counter()
    slowest = elapsed = 0.0
    offset = 0
    while offset < RECORDS:
        records = mutator.take(min(BATCH, RECORDS - offset), offset)
        offset += len(records)
        started = time.perf_counter()
        folded = partition.fold(records, now=0.0)
        seconds = time.perf_counter() - started
        elapsed, slowest = elapsed + seconds, max(slowest, seconds / len(records))
        work = partition.take_work()
        assert work is not None
        dead = {letter.letter.offset: letter for letter in work.dead}
        valid = 0
        for record in records:
            try:
                event = decode_event(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
                sound = record.key == event.user_id.encode() and len(record.value or b"") <= MAX_BYTES
            except UndecodableEvent:
                sound = False
            if not sound:
                letter = dead.pop(record.offset)
                assert (letter.key, letter.value) == (record.key, record.value)
                assert "\n" not in letter.letter.message
                counts["dead"] += 1
                continue
            valid += 1
            state = expected.setdefault(event.user_id, UserState(event.user_id))
            if isinstance(event, Profile):
                state.fold_profile(event, record.timestamp)
            else:
                trace = dict(record.headers).get("traceparent")
                state.fold(event, record.offset, record.timestamp, trace, MAX_EVENTS)
        assert not dead
        assert sum(folded.events.values()) == valid
        assert sum(folded.dead.values()) == len(records) - valid
        counts["valid"] += valid
        store.apply(work.changes, offset)
        partition.committed(work)
    assert counts["dead"] + counts["valid"] == RECORDS
    assert min(counts.values()) > RECORDS // 10
    for user_id, state in expected.items():
        stored = store.load(user_id)
        assert stored is not None
        assert (stored.records, stored.videos) == (state.records, state.videos)
        assert (stored.profile, stored.profile_ms) == (state.profile, state.profile_ms)
    assert slowest < 0.02, f"{slowest:.4f} s a record in one batch"
    record_property("fuzz", f"{counts['valid']} valid, {counts['dead']} dead, {elapsed:.1f} s")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_no_time_and_no_room(name: str) -> None:
    """A value that claims more depth, count or length than it has costs neither time nor memory, and is refused."""
    value, packed = BOMBS[name]
    assert len(value) < 2 * MAX_BYTES
    content_type = MESSAGEPACK.encode() if packed else None
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with pytest.raises(UndecodableEvent):
        decode_event(value, content_type)
    with pytest.raises(UndecodableVideo):
        decode_video(value, content_type)
    assert time.perf_counter() - started < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
