"""Where user states live: the RocksDB files of one partition.

The files are a copy of the changelog up to a checkpoint (the changelog offset they include), so they are written
without a log of their own: what a crash takes from them is read from the changelog again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog
from msgspec import Struct
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from stream.erasure import ERASE_SECONDS, Eraser
from stream.sequences import UserState
from stream.stored import (
    Change,
    CorruptState,
    Tail,
    owed_since,
    read_tail,
    stored_keys,
    tail_key,
    user_of_tail_key,
)

log = structlog.get_logger(__name__)

_MIB: Final = 1024 * 1024
_META_KEY: Final = b"m"
_FORMAT: Final = 2
# Files that were not written for so long may hold what the changelog has forgotten to have deleted: its tombstones
# stay for delete.retention.ms, a day by default.
_STALE_SECONDS: Final = 20 * 3_600
_CLOCKS_APART_HOURS: Final = 1
_DAMAGED: Final = re.compile("Corruption")
# by another process, or by this one; the word "lock" alone stands in most of RocksDB's errors
_LOCKED: Final = re.compile("IO error: (While lock file|lock hold by current process)")


class _Meta(Struct, frozen=True):
    format: int
    identity: str
    checkpoint: int
    written_s: float = 0.0
    erasing: bool = False


class StateStore(Protocol):
    """Durable user states of one partition."""

    @property
    def checkpoint(self) -> int:
        """The changelog offset to read from next: every earlier record is in the store."""

    def load(self, user_id: str) -> UserState | None:
        """A user's state, None for one never seen; raises CorruptState if what is stored does not read back."""

    def value(self, key: bytes) -> bytes | None:
        """What is stored under a key, None for nothing."""

    def apply(self, changes: Iterable[Change], checkpoint: int) -> None:
        """Write changes and move the checkpoint, both or neither; raises CorruptState if the store is damaged."""

    def scan(self) -> Iterator[tuple[str, int]]:
        """Every user, and since when (milliseconds) a list is owed to them, 0 where none is; raises CorruptState."""

    def tails(self, after: str | None, count: int) -> list[tuple[str, Tail]]:
        """The next so many users in the order of the store, after that one, and their tail records; CorruptState."""

    def close(self) -> None:
        """Flush to disk and close."""

    def discard(self) -> None:
        """Close, and delete all that is stored."""


class RocksMemory:
    """Memory that the stores of all partitions share, so that it does not grow with their number.

    Write buffers are counted into the block cache: `nbytes` bounds both together.
    """

    def __init__(self, nbytes: int) -> None:
        self.block_cache = Cache(nbytes)
        self.write_buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            nbytes // 2, False, self.block_cache
        )


class RocksStore:
    """A StateStore in RocksDB.

    `identity` names whose states these are (group, topic, partition): files of another identity or format, files that
    are too old for the changelog to mend, or that RocksDB refuses, are deleted, and the store begins empty, to be
    restored from the changelog.
    """

    def __init__(
        self,
        path: Path,
        identity: str,
        memory: RocksMemory | None = None,
        *,
        erase_seconds: float = ERASE_SECONDS,
    ) -> None:
        """`memory` is shared with other stores; alone, a store takes 64 MiB.

        What is deleted of forgotten users leaves the disk within about `erase_seconds`.
        """
        self._erase_seconds = erase_seconds
        self.path = path
        self.refused = False  # RocksDB could not open the files that were there
        self._identity = identity
        self._memory = memory or RocksMemory(64 * _MIB)
        self._write_options = WriteOptions()
        self._write_options.disable_wal = True
        self._db = self._open()
        self._eraser = Eraser(self._db, erase_seconds)
        meta = self._read_meta()
        if meta is None or (reason := self._why_not(meta)) is not None:
            if meta is not None:
                log.warning("state_files_replaced", path=str(path), reason=reason)
            self.wipe()
            return
        self._checkpoint = meta.checkpoint
        if meta.erasing:
            self._eraser.request()

    @property
    def checkpoint(self) -> int:
        return self._checkpoint

    def load(self, user_id: str) -> UserState | None:
        try:
            value = self._db.get(tail_key(user_id))
            if value is None:
                return None
            tail = read_tail(value)
            keys = stored_keys(user_id, tail)
            return UserState.from_store(user_id, tail, self._db.get(keys) if keys else [])
        except Exception as error:
            raise self._unreadable(error) from error

    def value(self, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(key)
        return value

    def apply(self, changes: Iterable[Change], checkpoint: int) -> None:
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        forgotten = False
        for key, value in changes:
            if value is None:
                delete(key)
                forgotten = forgotten or user_of_tail_key(key) is not None
            else:
                put(key, value)
        meta = _Meta(_FORMAT, self._identity, checkpoint, time.time(), forgotten or self._eraser.pending)
        put(_META_KEY, msgspec.msgpack.encode(meta))
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:
            # found by RocksDB itself, when it compacted files: it takes nothing any more
            if _DAMAGED.match(str(error)):
                raise self._unreadable(error) from error
            raise
        self._checkpoint = checkpoint
        if forgotten:
            self._eraser.request()

    def scan(self) -> Iterator[tuple[str, int]]:
        options = ReadOptions()
        options.set_readahead_size(4 * _MIB)
        try:
            for key, value in self._db.items(from_key=tail_key(""), read_opt=options):
                user_id = user_of_tail_key(key)
                if user_id is None:
                    return
                yield user_id, owed_since(read_tail(value))
        except Exception as error:
            raise self._unreadable(error) from error

    def tails(self, after: str | None, count: int) -> list[tuple[str, Tail]]:
        found: list[tuple[str, Tail]] = []
        start = tail_key(after) + b"\0" if after is not None else tail_key("")
        try:
            for key, value in self._db.items(from_key=start):
                user_id = user_of_tail_key(key)
                if user_id is None or len(found) == count:
                    break
                found.append((user_id, read_tail(value)))
        except Exception as error:
            raise self._unreadable(error) from error
        return found

    def wipe(self) -> None:
        """Begin again with an empty store."""
        self._eraser.close()
        self._db.close()
        shutil.rmtree(self.path)
        self._db = self._open()
        self._eraser = Eraser(self._db, self._erase_seconds)
        self._checkpoint = 0

    def close(self) -> None:
        self._eraser.close()
        self._db.flush()
        self._db.close()

    def discard(self) -> None:
        self._eraser.close()
        with contextlib.suppress(Exception):  # damaged files cannot be flushed
            self._db.close()
        shutil.rmtree(self.path)

    def _why_not(self, meta: _Meta) -> str | None:
        """Why files with these facts cannot be used, None if they can."""
        if meta.format != _FORMAT:
            age = "a newer" if meta.format > _FORMAT else "an older"
            return f"{age} program wrote them: format {meta.format}, where this one is {_FORMAT}"
        if meta.identity != self._identity:
            return f"they are of {meta.identity}, where {self._identity} is wanted"
        hours = (time.time() - meta.written_s) / 3_600
        if hours < -_CLOCKS_APART_HOURS:
            return f"they were written {-hours:.0f} hours from now: a clock was wrong, and their age is not known"
        if hours * 3_600 > _STALE_SECONDS:
            return f"they are {hours:.0f} hours old: what was deleted since then, the changelog may not tell any more"
        return None

    def _open(self) -> Rdict:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            return self._connect()
        except Exception as error:  # rocksdict raises bare Exception for whatever RocksDB refuses
            if _LOCKED.match(str(error)):
                raise StateInUse(f"state folder {self.path} is used by another process") from error
            log.warning("state_files_refused", path=str(self.path), error=str(error))
            self.refused = True
            shutil.rmtree(self.path)
            self.path.mkdir(parents=True)
            return self._connect()

    def _connect(self) -> Rdict:
        options = self._options()
        # by name: else files that are there keep the options they were made with, and have a cache of their own
        db = Rdict(str(self.path), options, {"default": options})
        try:
            db.get(_META_KEY)  # some damage shows only in what is read
        except Exception:
            db.close()
            raise
        return db

    def _unreadable(self, error: Exception) -> CorruptState:
        return CorruptState(f"{self.path}: {error}")

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(32 * _MIB)
        options.set_write_buffer_manager(self._memory.write_buffers)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(2)
        options.set_allow_concurrent_memtable_write(False)  # one writer: the commit cycle
        table = BlockBasedOptions()
        table.set_block_cache(self._memory.block_cache)
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        return options

    def _read_meta(self) -> _Meta | None:
        value = self._db.get(_META_KEY)
        if value is None:
            return None
        try:
            return msgspec.msgpack.decode(value, type=_Meta)
        except msgspec.MsgspecError:
            return _Meta(0, "unreadable", 0)


class StateInUse(Exception):
    """The files are open in another process: two daemons were given one state folder."""


__all__ = ["CorruptState", "RocksStore", "StateInUse", "StateStore"]
