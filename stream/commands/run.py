"""`mtgr-stream run`: the daemon as a process."""

from __future__ import annotations

import click
import structlog
import uvloop

from stream.daemon import Daemon
from stream.errors import Fatal
from stream.observability import configure_logging
from stream.settings import Settings, settings_options

log = structlog.get_logger(__name__)


@click.command()
@settings_options
def command(settings: Settings) -> int:
    """Run the daemon: read events, keep every user's sequence, publish recommendation lists.

    SIGTERM or SIGINT drains: nothing more is fetched, lists that fit stream.drain_deadline_seconds are made, everything
    is committed and the group is left; a second signal exits at once. Exit code 0 after a drain, 1 where the daemon
    could not go on, 2 for wrong settings, checkpoint or topics.
    """
    configure_logging(settings.log)
    try:
        uvloop.run(_run(settings))
    except Fatal as error:
        click.echo(f"mtgr-stream: {error}", err=True)
        return 1
    return 0


async def _run(settings: Settings) -> None:
    daemon = Daemon(settings)
    daemon.handle_signals()
    await daemon.run()
