"""Promises of stream.changelog: what was appended comes back, in order, whatever compaction has made of it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiokafka import TopicPartition
from changelogs import Batch, Changelog, ChangelogConsumer, ChangelogProducer
from dict_store import DictStore
from events import watch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream import changelog
from stream.errors import Fatal
from stream.sequences import UserState
from stream.stored import Change

TP = TopicPartition("group-changelog", 3)
changes = st.lists(
    st.tuples(st.sampled_from([b"ta", b"tb", b"b0", b"b1"]), st.none() | st.binary(max_size=4)), max_size=30
)


@given(changes.filter(bool), st.integers(1, 10), st.integers(0, 50))
def test_the_offset_returned_is_the_end_of_what_was_written(
    written: list[tuple[bytes, bytes | None]], batch_size: int, before: int
) -> None:
    """Changes stand in the log in their order, and the checkpoint is the offset after the last of them."""

    async def scenario() -> None:
        log = Changelog(begin=before, end=before)
        end = await changelog.append(ChangelogProducer(log, batch_size), TP, written, 0)
        assert end == log.end == before + len(written)
        assert [(entry.key, entry.value) for entry in log.entries] == written

    asyncio.run(scenario())


async def test_a_batch_that_fails_fails_the_append() -> None:
    """Unless every batch is acknowledged there is no checkpoint."""
    log = Changelog()
    producer = ChangelogProducer(log, 2, frozenset({1}))
    with pytest.raises(OSError, match="gone"):
        await changelog.append(producer, TP, [(b"k%d" % n, b"v") for n in range(6)], 0)


@given(st.lists(changes, max_size=6), st.data())
def test_a_restore_brings_any_store_up_to_date(
    commits: list[list[tuple[bytes, bytes | None]]], data: st.DataObject
) -> None:
    """A store that had read to any commit, or nothing, reads what it lacks and ends as one that has read it all."""

    async def scenario() -> None:
        log, reference = Changelog(), DictStore()
        stale = DictStore()
        known = data.draw(st.integers(0, len(commits)))
        for number, commit in enumerate(commits):
            log.append(commit)
            log.skip(data.draw(st.integers(0, 2)))
            reference.apply(commit, log.end)
            if number < known:
                stale.apply(commit, log.end)
        if data.draw(st.booleans()):
            log.compact()
        for store in (stale, DictStore()):
            checkpoint = store.checkpoint
            consumer = ChangelogConsumer(log, data.draw(st.integers(1, 7)))
            progress: list[changelog.RestoreStep] = []
            restored = await changelog.restore(consumer, TP, store, progress.append)
            assert restored == sum(step.records for step in progress) == len(consumer.read)
            assert all(step.begin < step.position <= step.end for step in progress)
            assert all(offset >= checkpoint for offset in consumer.read)
            assert store.values == reference.values
            if any(entry.offset >= checkpoint for entry in log.entries):
                assert store.checkpoint > max(entry.offset for entry in log.entries)

    asyncio.run(scenario())


async def test_a_changelog_that_begins_later_is_read_from_there() -> None:
    """Records that compaction has taken from the head of the log are not waited for."""
    log = Changelog(begin=100, end=100)
    log.append([(b"ta", b"1")])
    store = DictStore()
    assert await changelog.restore(ChangelogConsumer(log), TP, store, lambda _: None) == 1
    assert (store.values, store.checkpoint) == ({b"ta": b"1"}, 101)


async def test_a_marker_at_the_end_costs_no_time() -> None:
    """After the last transaction comes its marker, which no record stands for: a restart does not wait for one."""
    log = Changelog()
    log.append([(b"ta", b"1")])
    log.skip(1)
    consumer = ChangelogConsumer(log)
    assert await changelog.restore(consumer, TP, DictStore(checkpoint=1), lambda _: None) == 0
    assert consumer.waited_ms <= 50


async def test_a_changelog_that_lost_records_stops_the_daemon() -> None:
    """A local state ahead of its changelog is not silently believed: the message says what to do about it."""
    store = DictStore(checkpoint=7)
    with pytest.raises(Fatal, match=r"group-changelog-3 ends at 5, before .* 7: delete the local state"):
        await changelog.restore(ChangelogConsumer(Changelog(end=5)), TP, store, lambda _: None)


async def test_an_up_to_date_store_reads_nothing() -> None:
    """A restart in good order costs no read of the changelog."""
    log = Changelog()
    log.append([(b"ta", b"1")])
    consumer = ChangelogConsumer(log)
    assert await changelog.restore(consumer, TP, DictStore(checkpoint=1), lambda _: None) == 0
    assert consumer.read == []


class SizedBatch(Batch):
    """A batch of at most so many bytes, as a real one is."""

    def size(self) -> int:
        return sum(20 + len(key) + len(value or b"") for key, value in self.records)

    def append(self, *, timestamp: int, key: bytes, value: bytes | None) -> object | None:
        if self.records and self.size() + 20 + len(key) + len(value or b"") > self._size:
            return None
        self.records.append((key, value))
        return object()


class SizedProducer(ChangelogProducer):
    """A producer of such batches."""

    def create_batch(self) -> Batch:
        return SizedBatch(self._batch_size)


@settings(max_examples=30)
@given(st.lists(st.integers(300, 600), min_size=4, max_size=4), st.integers(1_200, 2_500), st.integers(0, 3))
def test_nothing_of_a_forgotten_user_outlives_a_crash_between_two_batches(
    histories: list[int], batch_bytes: int, survived: int
) -> None:
    """Whichever batches of a commit are durable when a daemon dies, its successor, which reads the same records again,
    leaves no key of a forgotten user behind."""

    async def scenario() -> None:
        log = Changelog()
        users = [UserState(f"user{number}") for number in range(len(histories))]
        for state, events in zip(users, histories, strict=True):
            for number in range(events):
                state.fold(watch(state.user_id, f"e{number}"), number, 0, None, 600)
        log.append([change for state in users for change in state.changes()])
        before = log.end
        changes: list[Change] = []
        for state in users:
            state.fold(watch(state.user_id, "last"), 1_000, 0, None, 600)
            assert state.forget(1_001)
            changes += state.changes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(changelog, "BATCH_BYTES", batch_bytes)
            producer = SizedProducer(log, batch_bytes, frozenset(range(survived, 100)))
            with contextlib.suppress(OSError):
                await changelog.append(producer, TP, changes, 0)
        assert log.end <= before + len(changes)
        store = DictStore()
        store.apply(((entry.key, entry.value) for entry in log.entries), log.end)
        for user_id in (state.user_id for state in users):
            state = store.load(user_id) or UserState(user_id)
            for offset, event in ((1_000, watch(user_id, "last")), (1_001, None)):
                if offset <= state.offset:
                    continue
                if event is not None:
                    state.fold(event, offset, 0, None, 600)
                else:
                    state.forget(offset)
            store.apply(state.changes(), 0)
        assert store.values == {}

    asyncio.run(scenario())
