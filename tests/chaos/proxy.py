"""A TCP proxy between daemons and brokers, a process of its own, whose links are cut, held up and slowed on command.

`python proxy.py NAME=LISTEN:TARGET ...`: a command is a line of JSON on standard input,
{"links": [names], "delay": seconds, "hold": bool, "refuse": bool, "cut": bool}, and is answered by a line when it has
been carried out. What is not named in a command is as if nothing was wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

_CHUNK = 64 * 1024
_CHUNKS = 64  # under way in one direction of a connection


class _Link:
    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.refuse = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._open: set[asyncio.StreamWriter] = set()

    def tell(self, delay: float, hold: bool, refuse: bool, cut: bool) -> None:
        self.delay, self.refuse = delay, refuse
        if cut:
            for writer in list(self._open):
                writer.transport.abort()
        if hold:
            self.flowing.clear()
        else:
            self.flowing.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        await self.flowing.wait()
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, to_writer}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, to_writer))
                both.create_task(self._pump(to_reader, writer))
        except* OSError:
            pass
        finally:
            self._open -= ends
            for one in ends:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on what comes, each piece a delay after it came; ends the connection with either end."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS)

        async def take() -> None:
            while True:
                try:
                    data = await reader.read(_CHUNK)
                except OSError:  # reset, as by a process that was killed
                    data = b""
                await under_way.put((loop.time(), data))
                if not data:
                    return

        taking = asyncio.create_task(take())
        try:
            while True:
                came, data = await under_way.get()
                if self.delay and (wait := came + self.delay - loop.time()) > 0:
                    await asyncio.sleep(wait)
                await self.flowing.wait()
                if not data or writer.transport.is_closing():
                    raise ConnectionResetError
                writer.write(data)
                await writer.drain()
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


async def _serve(links: Mapping[str, tuple[int, int]]) -> None:
    served = {name: _Link(target) for name, (_, target) in links.items()}
    for name, (listen, _) in links.items():
        await asyncio.start_server(served[name].connect, "127.0.0.1", listen)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        for name in command["links"]:
            served[name].tell(
                command.get("delay", 0.0),
                command.get("hold", False),
                command.get("refuse", False),
                command.get("cut", False),
            )
        print("done", flush=True)


class Proxy:
    """The proxy process, seen by those who command it; it ends with them."""

    def __init__(self, links: Mapping[str, tuple[int, int]]) -> None:
        """`links` are the ports to listen on and to connect to, by name."""
        self.links = tuple(links)
        self._arguments = [f"{name}={listen}:{target}" for name, (listen, target) in links.items()]
        self._commanding = asyncio.Lock()

    async def __aenter__(self) -> Proxy:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__)),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await self._answer()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def tell(
        self,
        links: Sequence[str],
        *,
        delay: float = 0.0,
        hold: bool = False,
        refuse: bool = False,
        cut: bool = False,
    ) -> None:
        """Change how these links are; with no more than their names, they are as if nothing was wrong."""
        command = {"links": list(links), "delay": delay, "hold": hold, "refuse": refuse, "cut": cut}
        async with self._commanding:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            await self._answer()

    async def _answer(self) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            if not await self._process.stdout.readline():
                raise RuntimeError("the proxy has ended")


def _main(arguments: Sequence[str]) -> None:
    links: dict[str, tuple[int, int]] = {}
    for argument in arguments:
        name, _, ports = argument.partition("=")
        listen, _, target = ports.partition(":")
        links[name] = (int(listen), int(target))
    uvloop.run(_serve(links))


if __name__ == "__main__":
    _main(sys.argv[1:])
