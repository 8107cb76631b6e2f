"""What vLLM adds to its worker class, so that `collective_rpc` finds our methods there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mtgr.serving.additions import VideoAdditions

if TYPE_CHECKING:
    from mtgr.serving.session_worker import SessionWorker
    from mtgr.serving.step_server import StepServer

OPEN_SESSIONS: Final = "open_sessions"
SERVE_STEPS: Final = "serve_steps"


class WorkerExtension(VideoAdditions):
    """Videos that join the catalog, and lists of sessions."""

    sessions: SessionWorker | None = None
    server: StepServer | None = None

    def open_sessions(self) -> tuple[int, int]:
        """Take the KV cache for sessions, with none in it; returns its blocks and the tokens of each."""
        from mtgr.serving.session_worker import SessionWorker

        worker: Any = self
        self.sessions = SessionWorker(worker)
        return self.sessions.blocks, self.sessions.block_size

    def serve_steps(self, address: str) -> None:
        """Compute the steps that a `mtgr.serving.step_channel.StepChannel` sends, until it pauses or is closed."""
        from mtgr.serving.step_server import StepServer

        worker: Any = self
        assert self.sessions is not None
        if self.server is None:
            self.server = StepServer(address, worker.rank)
        self.server.serve(self.sessions)
