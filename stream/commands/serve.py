"""`mtgr-stream serve`: one engine that several daemons share, as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any, Final

import click
import structlog
import uvloop
from msgspec import structs

from mtgr.errors import EngineFailed
from mtgr.serving.engine import EngineOptions, RecommendationEngine
from mtgr.serving.replicated_engine import ReplicatedEngine
from mtgr.serving.server import DEFAULT_PORT, EngineServer
from stream.observability import configure_logging
from stream.settings import LogSettings
from stream.tools.engine_options import DEFAULTS, engine_options

log = structlog.get_logger(__name__)

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Directory of the checkpoint.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=DEFAULT_PORT,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="0 takes a free one.",
)
@engine_options
@click.option(
    "--replicas",
    default=DEFAULTS.replicas,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Engines among which users are divided; each takes --tensor-parallel-size devices.",
)
@click.option(
    "--max-batch-users",
    default=DEFAULTS.max_num_seqs,
    show_default=True,
    type=click.IntRange(1),
    help="Most users of one step, over all daemons.",
)
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]),
    help="What is logged, and all that weighs more.",
)  # fmt: skip
@click.option(
    "--log-format", default="auto", show_default=True, type=click.Choice(["auto", "json", "console"]),
    help="auto is readable on a terminal, and JSON lines elsewhere.",
)  # fmt: skip
def command(
    checkpoint: Path,
    host: str,
    port: int,
    engine: EngineOptions,
    replicas: int,
    max_batch_users: int,
    log_level: Any,
    log_format: Any,
) -> int:
    """Serve a checkpoint to daemons whose generator.kind is "server".

    There is no access control: who reaches the port gets lists. SIGTERM or SIGINT answers the calls under way and
    stops; a second signal exits at once. Exit code 1 where the engine does not start, 2 for a wrong checkpoint.
    """
    configure_logging(LogSettings(level=log_level, format=log_format))
    options = structs.replace(
        engine,
        checkpoint=checkpoint,
        replicas=replicas,
        max_num_seqs=max_batch_users,
        max_num_batched_tokens=max(DEFAULTS.max_num_batched_tokens, max_batch_users),
    )
    try:
        uvloop.run(_serve(options, host, port))
    except EngineFailed as error:
        click.echo(f"mtgr-stream: {error}", err=True)
        return 1
    return 0


async def _serve(options: EngineOptions, host: str, port: int) -> None:
    stopped = _stop_on_signals()
    engine = ReplicatedEngine(options) if options.replicas > 1 else RecommendationEngine(options)
    server = EngineServer(engine, host, port)
    if host not in _LOOPBACK:
        log.warning("serving_beyond_this_machine", host=host, port=port)
    serving = asyncio.create_task(_serve_until(stopped, server))
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not server.is_serving:  # an engine that is starting is not waited for
        serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def _serve_until(stopped: asyncio.Event, server: EngineServer) -> None:
    async with server:
        await stopped.wait()
        log.info("engine_server_stops")


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process, and with it the engine."""
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopped
