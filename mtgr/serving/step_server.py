"""A worker's end of the channel that steps come through; `mtgr.serving.step_channel` says why there is one."""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from mtgr.serving.session_steps import decode_steps, encode_answer
from mtgr.serving.step_channel import HEADER, PAUSE

if TYPE_CHECKING:
    from mtgr.serving.session_worker import PendingAnswer, SessionWorker

_SOON: Final = 0
_WHENEVER: Final = None


class StepServer:
    """Launches steps as they come, and answers as their lists are made, all in the thread that calls it."""

    def __init__(self, address: str, rank: int) -> None:
        """Connect to a front end, which expects answers from rank 0 alone: they all have the same."""
        self._rank: Final = rank
        self._socket: Final = socket.socket(socket.AF_UNIX)
        self._socket.connect(f"\0{address}")
        self._poll: Final = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def serve(self, sessions: SessionWorker) -> None:
        """Until the front end pauses or is gone. What was begun by then is answered."""
        pending: deque[PendingAnswer] = deque()
        try:
            while True:
                while pending and pending[0].is_there:
                    self._answer(pending.popleft())
                # while a GPU computes, the next steps and its lists are both looked for: whichever comes first
                if not self._poll.poll(_SOON if pending else _WHENEVER):
                    continue
                packed = self._receive()
                if packed is None:
                    break
                launched = sessions.launch(decode_steps(packed))
                if self._rank == 0:
                    pending.append(launched)
            for launched in pending:
                self._answer(launched)
        except ConnectionError:
            return  # nobody waits for these answers

    def _receive(self) -> bytearray | None:
        """The next steps; None where the front end pauses or is gone."""
        header = self._read(HEADER.size)
        if header is None:
            return None
        (size,) = HEADER.unpack(header)
        return None if size == PAUSE else self._read(size)

    def _read(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            received = self._socket.recv_into(view)
            if not received:
                return None
            view = view[received:]
        return data

    def _answer(self, pending: PendingAnswer) -> None:
        answer = encode_answer(pending.wait())
        self._socket.sendall(HEADER.pack(len(answer)) + answer)
