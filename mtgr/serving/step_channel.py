"""The front end's end of what steps travel through: a socket to each of an engine's workers, and answers from one.

vLLM's own way to a worker is a message to the engine process that three of its threads hand on to each other, and the
way back is as long: most of a millisecond where the processors were idle. Here the worker's main thread reads a step
off the socket itself, within one call of vLLM that lasts as long as lists are made (`serve_steps`). For any other call
it is let go by a pause, which comes in order with the steps. A socket ends with either process, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from mtgr.errors import EngineFailed

HEADER: Final = struct.Struct("<q")
"""Before each message: how many bytes it has, or PAUSE."""

PAUSE: Final = -1

_CREDENTIALS: Final = struct.Struct("3i")  # process, user and group, as Linux tells them


class StepChannel:
    """Sends packed steps to all workers and gives back the answers of the first, in the order of the steps."""

    def __init__(self, serve: Callable[[str], asyncio.Task[Any]]) -> None:
        """`serve` lets the workers serve what comes to an address; the task ends when all of them have been paused."""
        self._serve: Final = serve
        self._address: Final = f"mtgr-steps-{os.getpid()}-{secrets.token_hex(16)}"
        self._serving: asyncio.Task[Any] | None = None  # or the last one, while they are paused
        self._told: Final[set[asyncio.Task[Any]]] = set()  # those that have been paused
        self._transports: Final[list[asyncio.WriteTransport]] = []
        self._waiting: Final[deque[asyncio.Future[bytes]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # that it was opened in
        self._pausing: Final = asyncio.Lock()
        self.failure: EngineFailed | None = None
        """Why nothing comes back any more."""

    async def open(self, ranks: int) -> None:
        """Let the workers serve, and wait until all have connected; EngineFailed if one cannot."""
        loop = self._loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as listener:
            # a name that is no file: it ends with this socket, and only this machine's processes can see it
            listener.bind(f"\0{self._address}")
            listener.listen(ranks)
            listener.setblocking(False)
            self._begin()
            assert self._serving is not None
            while len(self._transports) < ranks:
                accepting = asyncio.create_task(loop.sock_accept(listener))
                try:
                    await asyncio.wait([accepting, self._serving], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    accepting.cancel()
                self._check()
                connection, _ = accepting.result()
                await self._connect(connection)

    def run(self, packed: bytes) -> asyncio.Future[bytes]:
        """Send steps; the future has their answer, or EngineFailed where there is none to come."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self.failure is not None:
            answer.set_exception(self.failure)
        else:
            self._waiting.append(answer)
            self._send(len(packed), packed)
        return answer

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Let the workers do something else, once they have begun all steps that were sent; steps meanwhile wait."""
        async with self._pausing:
            self._check()
            served = self._serving
            assert served is not None
            self._told.add(served)
            self._send(PAUSE)
            try:
                await asyncio.wait([served])
                self._check()
                yield
            finally:
                if self.failure is None:
                    self._begin()

    def close(self) -> None:
        """Part from the workers, which then serve no steps."""
        self.fail(EngineFailed("the engine was closed"))

    def fail(self, failure: EngineFailed) -> None:
        """End all that wait for answers, and all that will."""
        if self.failure is not None:
            return
        self.failure = failure
        if self._loop is not None and self._loop.is_closed():
            # nobody is left to be told but the workers, and a transport would need the loop to part from them
            for transport in self._transports:
                transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            return
        for transport in self._transports:
            transport.abort()
        if self._serving is not None:
            self._serving.cancel()  # a dead engine does not say that it has stopped
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(failure)

    def _begin(self) -> None:
        self._serving = self._serve(self._address)
        self._serving.add_done_callback(self._served)

    def _served(self, serving: asyncio.Task[Any]) -> None:
        """The workers have stopped: were they not told to, something has happened to them."""
        told = serving in self._told
        self._told.discard(serving)
        if serving.cancelled():
            return
        if (error := serving.exception()) is not None:
            self.fail(EngineFailed(f"the engine failed: {error}"))
        elif not told:
            self.fail(EngineFailed("the engine stopped serving"))

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(credentials)
        if user != os.getuid():
            connection.close()
            return
        connection.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(lambda: _Connection(self), connection)
        self._transports.append(transport)

    def _send(self, header: int, packed: bytes = b"") -> None:
        for transport in self._transports:
            transport.writelines([HEADER.pack(header), packed])

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def answered(self, answer: bytes) -> None:
        """The answer to the oldest steps has come."""
        waiting = self._waiting.popleft()
        if not waiting.done():
            waiting.set_result(answer)


class _Connection(asyncio.Protocol):
    """One worker; but for the first rank's, they never say anything."""

    def __init__(self, channel: StepChannel) -> None:
        self._channel: Final = channel
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Hand on the answers that are whole."""
        received = self._received
        received += data
        while len(received) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(received)[0]
            if len(received) < end:
                return
            self._channel.answered(bytes(memoryview(received)[HEADER.size : end]))
            del received[:end]

    def connection_lost(self, error: Exception | None) -> None:
        """The worker has closed its end, which it does when it dies."""
        self._channel.fail(EngineFailed("the engine died"))
