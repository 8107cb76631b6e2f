"""Promises of stream.state: what was applied is read back after a close and a crash."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from dict_store import DictStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rocksdict import Options, Rdict
from states import BLOCK, MAX_EVENTS, facts, fold
from strategies import ODD_IDS, identifiers

from stream.erasure import erase
from stream.sequences import UserState
from stream.state import RocksMemory, RocksStore, StateInUse
from stream.stored import Change, CorruptState, block_key, tail_key

IDENTITY = "group/user-events/0"


def written(user_id: str, count: int) -> tuple[UserState, list[Change]]:
    state = UserState(user_id)
    fold(state, count)
    return state, list(state.changes())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "0", IDENTITY)
    yield store
    store.close()


def test_a_new_store_is_empty(store: RocksStore) -> None:
    """A store that never was begins at the start of its changelog and knows nobody."""
    assert store.checkpoint == 0
    assert store.load("u") is None
    assert list(store.scan()) == []


def test_states_and_checkpoint_survive_a_close(tmp_path: Path) -> None:
    """What was applied, whatever the user's id, is there after close and reopen, with its checkpoint."""
    store = RocksStore(tmp_path / "0", IDENTITY)
    states = {}
    for number, user in enumerate(ODD_IDS):
        states[user], changes = written(user, 1 + 5 * number)
        store.apply(changes, number + 1)
    store.close()
    store = RocksStore(tmp_path / "0", IDENTITY)
    assert store.checkpoint == len(ODD_IDS)
    for user in ODD_IDS:
        assert facts(store.load(user)) == facts(states[user])
    assert sorted(user for user, _ in store.scan()) == sorted(ODD_IDS)
    store.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(identifiers, st.integers(1, 40), st.booleans()), min_size=1, max_size=8))
def test_the_files_hold_what_a_dict_would(store: RocksStore, commits: list[tuple[str, int, bool]]) -> None:
    """Any run of commits leaves the same states, owed lists and deletions in RocksDB as in a plain dict."""
    store.wipe()
    reference = DictStore()
    for checkpoint, (user, count, served) in enumerate(commits):
        state = reference.load(user) or UserState(user)
        fold(state, count)
        if served:
            state.ask()
            state.served()
        changes = list(state.changes())
        store.apply(changes, checkpoint)
        reference.apply(changes, checkpoint)
    assert store.checkpoint == len(commits) - 1
    assert list(store.scan()) == list(reference.scan())
    for user, _ in reference.scan():
        assert facts(store.load(user)) == facts(reference.load(user))


def test_stores_share_their_memory_over_a_restart(tmp_path: Path) -> None:
    """What is read from files that were there before is cached in the memory given, as from new ones."""
    for restart in range(3):
        memory = RocksMemory(16 << 20)
        before = memory.block_cache.get_usage()
        store = RocksStore(tmp_path / "0", IDENTITY, memory)
        if not restart:
            store.apply([(tail_key(f"u{number}"), bytes(1_000)) for number in range(1_000)], 1)
            store._db.flush()
        assert all(store.value(tail_key(f"u{number}")) for number in range(1_000))
        assert memory.block_cache.get_usage() - before > 500_000
        store.close()


def test_deleted_blocks_leave_the_files(store: RocksStore) -> None:
    """Blocks that were cut off are gone from RocksDB, so that a user's share of the disk is bounded."""
    state = UserState("u")
    for number in range(30):
        fold(state, 10)
        store.apply(state.changes(), number)
    sealed = range(state.first_block, state.first_block + len(state) // BLOCK)
    keys = {key for key, _ in store._db.items()} - {b"m"}
    assert keys == {tail_key("u"), *(block_key("u", number) for number in sealed)}


def test_a_crash_leaves_a_prefix_of_the_commits(tmp_path: Path) -> None:
    """A process that dies without close leaves states and checkpoint of one and the same commit."""
    dying = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from test_state_child import commit_forever
commit_forever({str(tmp_path / "0")!r})
"""
    child = tmp_path / "test_state_child.py"
    child.write_text(
        f"""
import os
from pathlib import Path
from schemas.events import Like
from stream.sequences import UserState
from stream.state import RocksStore

def commit_forever(path):
    store = RocksStore(Path(path), {IDENTITY!r})
    states = [UserState("a"), UserState("b")]
    for number in range(40):
        changes = []
        for state in states:
            for i in range(3):
                event = Like(event_id=f"{{number}}-{{i}}", user_id=state.user_id, video_id="v", timestamp_ms=0)
                state.fold(event, 3 * number + i, 0, None, {MAX_EVENTS})
            changes.extend(state.changes())
        store.apply(changes, number + 1)
        if number == 19:
            store._db.flush()  # as RocksDB does by itself when its buffer is full
    os._exit(9)
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", dying],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    store = RocksStore(tmp_path / "0", IDENTITY)
    assert 20 <= store.checkpoint <= 40
    for user in ("a", "b"):
        state = store.load(user)
        assert state is not None
        assert state.offset == 3 * store.checkpoint - 1
        assert (BLOCK * state.first_block + len(state)) == 3 * store.checkpoint
    store.close()


def test_files_of_another_partition_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    """Files of another group, topic or partition are wiped, so that no foreign state is ever served."""
    store = RocksStore(tmp_path / "0", IDENTITY)
    store.apply(written("u", 5)[1], 7)
    store.close()
    store = RocksStore(tmp_path / "0", "group/user-events/1")
    assert store.checkpoint == 0
    assert store.load("u") is None
    assert list(store.scan()) == []
    store.close()


def rewrite_meta(path: Path, **changes: object) -> None:
    """Change what the files tell of themselves."""
    db = Rdict(str(path), Options(raw_mode=True))
    facts_ = msgspec.msgpack.decode(db[b"m"])
    assert changes.keys() <= facts_.keys()
    db[b"m"] = msgspec.msgpack.encode(facts_ | changes)
    db.flush()
    db.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 99}, "a newer program wrote them: format 99"),
        ({"format": 1}, "an older program wrote them: format 1"),
        ({"identity": "other/user-events/0"}, "they are of other/user-events/0"),
        ({"written_s": time.time() - 30 * 3_600}, "they are 30 hours old"),
    ],
)
def test_files_that_cannot_be_trusted_are_replaced_and_the_reason_told(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    """Files of a newer or older program, of another partition, or too old for the changelog to mend begin anew."""
    path = tmp_path / "0"
    store = RocksStore(path, IDENTITY)
    store.apply(written("u", 20)[1], 5)
    store.close()
    RocksStore(path, IDENTITY).close()
    rewrite_meta(path, **changes)
    with structlog.testing.capture_logs() as logs:
        store = RocksStore(path, IDENTITY)
    (line,) = [line for line in logs if line["event"] == "state_files_replaced"]
    assert reason in line["reason"]
    assert line["path"] == str(path)
    assert (store.checkpoint, list(store.scan())) == (0, [])
    store.close()


def on_disk(path: Path, text: bytes) -> list[str]:
    """The files that hold these bytes."""
    return [file.name for file in path.iterdir() if text in file.read_bytes()]


@pytest.mark.parametrize("restart", [True, False])
def test_a_forgotten_user_leaves_the_disk(tmp_path: Path, restart: bool) -> None:
    """Some time after a user was forgotten no file holds a byte of them, across a restart too; others are all there."""
    path = tmp_path / "0"
    store = RocksStore(path, IDENTITY, erase_seconds=1_000 if restart else 0.05)
    states = {user: UserState(user) for user in ("forgotten-user", "other-user")}
    for user, state in states.items():
        fold(state, 40, f"video-of-{user}-" + "x" * 50)
        store.apply(state.changes(), 1)
    store._db.flush()
    assert on_disk(path, b"forgotten-user")
    states["forgotten-user"].forget(40)
    store.apply(states["forgotten-user"].changes(), 2)
    if restart:
        store.close()
        assert on_disk(path, b"forgotten-user")
        store = RocksStore(path, IDENTITY, erase_seconds=0.05)
    deadline = time.monotonic() + 20
    while store._eraser.pending:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # the list of files names the keys at their edges until it is begun anew, at the next start
    assert [name for name in on_disk(path, b"forgotten-user") if not name.startswith("MANIFEST")] == []
    store.close()
    store = RocksStore(path, IDENTITY)
    assert on_disk(path, b"forgotten-user") == []
    assert facts(store.load("other-user")) == facts(states["other-user"])
    store.close()


@pytest.mark.parametrize("folder", ["0", "blocks-of-clocks"])
@pytest.mark.parametrize("damage", ["empty", "half", "garbage"])
def test_damaged_files_are_replaced(tmp_path: Path, damage: str, folder: str) -> None:
    """Whichever file is damaged, the store opens: with everything it held, or empty, to be restored."""
    path = tmp_path / folder
    store = RocksStore(path, IDENTITY)
    state, changes = written("u", 40)
    store.apply(changes, 7)
    store.close()
    intact = {file.name: file.read_bytes() for file in path.iterdir()}
    assert {"CURRENT"} < intact.keys()
    for name, content in intact.items():
        for file in path.iterdir():
            file.unlink()
        for other, bytes_ in intact.items():
            (path / other).write_bytes(bytes_)
        spoilt = {"empty": b"", "half": content[: len(content) // 2], "garbage": b"\xa5" * len(content)}
        (path / name).write_bytes(spoilt[damage])
        store = RocksStore(path, IDENTITY)
        if store.checkpoint:
            assert store.checkpoint == 7
            assert facts(store.load("u")) == facts(state)
        else:
            assert list(store.scan()) == []
        # and it is a store like any other
        store.apply(written("w", 3)[1], 8)
        assert store.load("w") is not None
        store.close()


def test_damage_found_while_reading_names_the_folder(tmp_path: Path) -> None:
    """A damaged data block raises CorruptState that says where it is, and never a wrong or missing history."""
    path = tmp_path / "0"
    store = RocksStore(path, IDENTITY)
    states = {}
    for number in range(300):
        states[f"u{number}"], changes = written(f"u{number}", 20)
        store.apply(changes, number + 1)
    store.close()
    (table,) = path.glob("*.sst")
    content = bytearray(table.read_bytes())
    content[len(content) // 3] ^= 0xFF
    table.write_bytes(content)
    store = RocksStore(path, IDENTITY)
    assert store.checkpoint == 300
    refusals = []
    for user, state in states.items():
        try:
            assert facts(store.load(user)) == facts(state)
        except CorruptState as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < len(states)
    assert all(str(path) in refusal for refusal in refusals)
    store.close()


def test_damage_found_by_a_compaction_stops_writing(tmp_path: Path) -> None:
    """Files that RocksDB finds damaged by itself take nothing any more: CorruptState, and they can be discarded."""
    path = tmp_path / "0"
    store = RocksStore(path, IDENTITY)
    for number in range(600):
        store.apply(written(f"u{number}", 20)[1], number + 1)
        if number % 300 == 299:
            store.close()
            store = RocksStore(path, IDENTITY)
    store.close()
    for table in path.glob("*.sst"):
        content = bytearray(table.read_bytes())
        content[len(content) // 3] ^= 0xFF
        table.write_bytes(content)
    store = RocksStore(path, IDENTITY)
    erase(store._db)  # what is found there is told by the next write
    with pytest.raises(CorruptState, match="checksum"):
        store.apply(written("v", 20)[1], 601)
    store.discard()
    store = RocksStore(path, IDENTITY)
    assert (store.checkpoint, store.refused) == (0, False)
    store.apply(written("v", 20)[1], 1)
    store.close()


def test_damage_at_the_checkpoint_is_found_at_once(tmp_path: Path) -> None:
    """A store whose checkpoint cannot be read begins empty, as one whose files cannot be opened does."""
    path = tmp_path / "0"
    store = RocksStore(path, IDENTITY)
    store.apply(written("u", 20)[1], 5)
    store.close()
    (table,) = path.glob("*.sst")
    content = bytearray(table.read_bytes())
    content[10] ^= 0xFF  # in the only data block
    table.write_bytes(content)
    store = RocksStore(path, IDENTITY)
    assert store.checkpoint == 0
    assert list(store.scan()) == []
    store.close()


def test_a_corrupt_state_in_a_sound_file_names_the_folder(store: RocksStore) -> None:
    """A tail record that does not decode stops load and scan with the user's store named."""
    store.apply([(tail_key("u"), b"nonsense")], 1)
    with pytest.raises(CorruptState, match=str(store.path)):
        store.load("u")
    with pytest.raises(CorruptState, match=str(store.path)):
        list(store.scan())


def test_one_folder_serves_one_process(store: RocksStore) -> None:
    """A second opener is told that the folder is in use, in this process and in another, and harms nothing."""
    state, changes = written("u", 20)
    store.apply(changes, 3)
    with pytest.raises(StateInUse, match=str(store.path)):
        RocksStore(store.path, IDENTITY)
    other = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from stream.state import RocksMemory, RocksStore, StateInUse
try:
    RocksStore(Path({str(store.path)!r}), "another identity")
except StateInUse:
    sys.exit(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", other], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert facts(store.load("u")) == facts(state)
