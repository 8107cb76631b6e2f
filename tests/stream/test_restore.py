"""Promises of stream.restore: a state is what its changelog says, whatever its files were, or nobody gets it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError
from changelogs import Changelog, ChangelogConsumer
from partitions import TOPIC, like, record_of, running

from mtgr.errors import InputError
from stream import restore
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.restore import Restorer
from stream.state import RocksMemory
from stream.stored import CorruptState, tail_key

TP = TopicPartition(TOPIC, 0)
ABSENT = 1 << 62  # failures that no test lives to the end of


class World:
    """A restorer of one partition whose changelog is in memory, and whose broker fails so many times."""

    def __init__(
        self,
        directory: Path,
        log: Changelog | None = None,
        error: Exception | None = None,
        failures: int = ABSENT,
    ) -> None:
        self.log = Changelog() if log is None else log
        self.consumers: list[ChangelogConsumer] = []
        self.metrics, self.health = Metrics(), Health()
        self._error, self._failures = error, failures
        self.restorer = Restorer(
            self._consumer,
            self.metrics,
            self.health,
            directory=directory,
            store_memory=RocksMemory(1 << 20),
            group_id="group",
            changelog_topic="group-changelog",
            patience_seconds=0.5,
        )

    def _consumer(self) -> ChangelogConsumer:
        fails = len(self.consumers) < self._failures
        self.consumers.append(ChangelogConsumer(self.log, error=self._error if fails else None))
        return self.consumers[-1]

    def sample(self, name: str) -> float | None:
        """The value of a metric."""
        return self.metrics.registry.get_sample_value(name)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other soon."""
    monkeypatch.setattr(restore, "_RETRY_SECONDS", 0.05)


def log_of(users: list[str]) -> Changelog:
    """The changelog of a partition that has folded one event of each, a second apart."""
    partition = running()
    for offset, user in enumerate(users):
        partition.fold([record_of(like(user, f"e{offset}"), offset, timestamp=1_000 * (offset + 1))], 0.0)
    work = partition.take_work()
    assert work is not None
    log = Changelog()
    log.append(work.changes)
    return log


async def test_a_restore_tells_what_it_read_and_whom_it_found(tmp_path: Path) -> None:
    """Who is owed a list is named, those who have waited longest first, and a second restore reads nothing again."""
    order = ["m", "z", "a", "k"]
    world = World(tmp_path, log_of(order))
    store = await world.restorer.open(TP)
    first = await world.restorer.restore(TP, store)
    assert (first.users, first.owed, first.records) == (4, order, len(world.log.entries))
    assert first.nbytes == sum(len(key) + len(value or b"") for _, key, value in world.log.entries)
    assert world.sample("mtgr_restored_records_total") == first.records
    store.close()

    store = await world.restorer.open(TP)
    again = await world.restorer.restore(TP, store)
    assert (again.users, again.owed, again.records, again.nbytes) == (4, order, 0, 0)
    store.close()
    assert all(consumer.stopped for consumer in world.consumers)


@pytest.mark.usefixtures("short_pauses")
async def test_a_broker_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    """While no broker answers the partition is not ready, and says why; then its state is read all the same."""
    world = World(tmp_path, log_of(["a"]), KafkaConnectionError("gone"), failures=2)
    store = await world.restorer.open(TP)
    assert (await world.restorer.restore(TP, store)).users == 1
    assert "gone" in str(world.health.reasons["partition-0"])
    assert [consumer.stopped for consumer in world.consumers] == [True] * 3
    store.close()


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("error", [KafkaConnectionError("gone"), TopicAuthorizationFailedError("refused")])
async def test_a_changelog_that_cannot_be_read_is_named(tmp_path: Path, error: Exception) -> None:
    """A broker that stays away for longer than the patience, or refuses, ends the restore with topic and reason."""
    world = World(tmp_path, log_of(["a"]), error)
    store = await world.restorer.open(TP)
    with pytest.raises(Fatal, match=r"^changelog group-changelog-0 cannot be read: .*(gone|refused)"):
        await world.restorer.restore(TP, store)
    assert (len(world.consumers) > 1) is isinstance(error, KafkaConnectionError)
    store.close()


@pytest.mark.parametrize(("known", "error"), [(False, Fatal), (True, CorruptState)])
async def test_whether_files_or_changelog_are_damaged_is_told_apart(
    tmp_path: Path, known: bool, error: type[Exception]
) -> None:
    """New files that do not read back are the changelog's fault, which no restore mends; old ones can be made anew."""
    world = World(tmp_path)
    damage = [(tail_key("a"), b"nonsense")]
    store = await world.restorer.open(TP)
    if known:
        store.apply(damage, 1)
        world.log.skip(1)
    else:
        world.log.append(damage)
    with pytest.raises(error) as raised:
        await world.restorer.restore(TP, store)
    assert str(raised.value).startswith("changelog group-changelog-0: ") is not known
    store.close()


async def test_files_must_last_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad files are an accident, and bad files soon after them are not, of the same partition."""
    world, bad = World(tmp_path), CorruptState("user 'a': bad tail")
    world.restorer.mend(TP, bad)
    world.restorer.mend(TopicPartition(TOPIC, 1), bad)
    with pytest.raises(Fatal, match=r"partition 0 .* bad tail: the disk or the changelog is damaged$"):
        world.restorer.mend(TP, bad)
    monkeypatch.setattr(restore, "_SOUND_SECONDS", 0.0)
    world.restorer.mend(TP, bad)
    assert world.sample("mtgr_state_repairs_total") == 3


async def test_a_state_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file in the place of the state's folder is the user's to mend: the setting is named."""
    (tmp_path / "state").write_text("not a folder")
    with pytest.raises(InputError, match=r"^state\.directory: "):
        await World(tmp_path / "state").restorer.open(TP)


async def test_a_state_folder_of_another_daemon_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two daemons with one state folder: the second one waits a little, then says what to do."""
    monkeypatch.setattr(restore, "_LOCK_PATIENCE_SECONDS", 0.1)
    store = await World(tmp_path).restorer.open(TP)
    with pytest.raises(Fatal, match=r": give each daemon a state\.directory of its own$"):
        await World(tmp_path).restorer.open(TP)
    store.close()


async def test_files_that_their_last_owner_still_closes_are_waited_for(tmp_path: Path) -> None:
    """A partition goes from daemon to daemon on one machine: the new one has its files once they are free."""
    store = await World(tmp_path).restorer.open(TP)
    opening = asyncio.create_task(World(tmp_path).restorer.open(TP))
    await asyncio.wait({opening}, timeout=0.05)
    assert not opening.done()
    store.close()
    (await opening).close()
