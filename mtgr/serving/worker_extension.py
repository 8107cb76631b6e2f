"""What vLLM adds to its worker class, so that `collective_rpc` finds our methods there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mtgr.serving.additions import VideoAdditions
from mtgr.serving.session_steps import decode_steps, encode_answer

if TYPE_CHECKING:
    from mtgr.serving.session_worker import PendingAnswer, SessionWorker

OPEN_SESSIONS: Final = "open_sessions"
RUN_STEPS: Final = "run_steps"
LAUNCH_STEPS: Final = "launch_steps"


class WorkerExtension(VideoAdditions):
    """Videos that join the catalog, and lists of sessions."""

    sessions: SessionWorker | None = None

    def open_sessions(self) -> tuple[int, int]:
        """Take the KV cache for sessions, with none in it; returns its blocks and the tokens of each."""
        from mtgr.serving.session_worker import SessionWorker

        worker: Any = self
        self.sessions = SessionWorker(worker)
        return self.sessions.blocks, self.sessions.block_size

    def launch_steps(self, packed: bytes) -> PendingAnswer:
        """Begin to compute steps, encoded by `mtgr.serving.session_steps`, whose answer can be waited for."""
        assert self.sessions is not None
        return self.sessions.launch(decode_steps(packed))

    def run_steps(self, packed: bytes) -> bytes:
        """The encoded answer to steps."""
        return encode_answer(self.launch_steps(packed).wait())
