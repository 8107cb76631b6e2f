"""Deleted states leave the disk: their files are compacted some time after the deletion, beside all other work."""

from __future__ import annotations

import threading
from typing import Final

import structlog
from rocksdict import BottommostLevelCompaction, CompactOptions, Rdict

log = structlog.get_logger(__name__)

ERASE_SECONDS: Final = 3_600.0


def erase(db: Rdict) -> None:
    """Rewrite all files of a database without what was deleted, deletions included."""
    options = CompactOptions()
    # else a file that came to the last level as it was, deletions and all, would stay as it is
    options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
    db.flush()
    db.compact_range(None, None, options)


class Eraser:
    """Compacts one database at most once in `seconds`, on a thread that there is only while something is to be erased.

    RocksDB writes a deletion beside what it deletes; only a compaction of both takes the bytes away.
    """

    def __init__(self, db: Rdict, seconds: float) -> None:
        self._db = db
        self._seconds = seconds
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._requests = 0
        self._done = 0

    @property
    def pending(self) -> bool:
        """Whether something that was deleted may still be on the disk."""
        return self._done < self._requests

    def request(self) -> None:
        """Something was deleted for good."""
        with self._lock:
            self._requests += 1
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="erasure", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Wait for a compaction that is under way, and leave what is not erased yet for the next time."""
        self._closing.set()
        with self._lock:  # a restore that was called off may be asking for it on a thread of its own
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            asked = self._requests
            try:
                erase(self._db)
            except Exception as error:  # noqa: BLE001  rocksdict knows no other
                log.warning("erasure_failed", path=self._db.path(), error=str(error))
                continue
            with self._lock:
                self._done = asked
                if not self.pending:
                    self._thread = None
                    return
