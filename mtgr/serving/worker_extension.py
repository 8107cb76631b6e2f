"""What vLLM adds to its worker class, so that `collective_rpc` finds our methods there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mtgr.serving.additions import VideoAdditions
from mtgr.serving.session_batches import decode_steps, encode_answer

if TYPE_CHECKING:
    from mtgr.serving.session_worker import SessionWorker

OPEN_SESSIONS: Final = "open_sessions"
RUN_STEPS: Final = "run_steps"


class WorkerExtension(VideoAdditions):
    """Videos that join the catalog, and lists of sessions."""

    sessions: SessionWorker | None = None

    def open_sessions(self) -> tuple[int, int]:
        """Take the KV cache for sessions, with none in it; returns its blocks and the tokens of each."""
        from mtgr.serving.session_worker import SessionWorker

        worker: Any = self
        self.sessions = SessionWorker(worker)
        return self.sessions.blocks, self.sessions.block_size

    def run_steps(self, packed: bytes) -> bytes:
        """The answer to steps, both as `mtgr.serving.session_batches` encodes them."""
        assert self.sessions is not None
        return encode_answer(self.sessions.run(decode_steps(packed)))
