"""`mtgr-stream state`: what is kept of users, for people to look at, carry elsewhere, or have forgotten."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from mtgr.errors import InputError
from stream.kafka import quieten
from stream.observability import configure_logging
from stream.settings import Settings, settings_options
from stream.tools.user_states import ExportedUser, forget_user, read_users, write_users

_decode = msgspec.json.Decoder(ExportedUser).decode
_encode = msgspec.json.Encoder().encode


@click.group()
def command() -> None:
    """Inspect, export, import or forget what is kept of users.

    All of it works on Kafka alone, from any machine, while daemons run (import excepted): the changelog topic
    holds every user's state, and daemons' files are copies of it.
    """


@command.command()
@settings_options
@click.argument("user")
def inspect(settings: Settings, user: str) -> int:
    """Show what is kept of a user: events, attributes, what is owed.

    One JSON object. Exit code 1 where nothing is kept of the user.
    """
    _set_up(settings)

    async def look() -> ExportedUser | None:
        async for found in read_users(settings, user):
            return found
        return None

    found = asyncio.run(look())
    if found is None:
        click.echo(
            f"mtgr-stream: nothing is kept of user {user!r} in topic {settings.changelog_topic}", err=True
        )
        return 1
    shown = msgspec.to_builtins(found)
    del shown["stored"]
    click.echo(msgspec.json.format(_encode(shown)).decode())
    return 0


@command.command()
@settings_options
@click.option("--user", metavar="ID", help="This user alone.")
def export(settings: Settings, user: str | None) -> int:
    """Write users' states to standard output, one JSON object a line.

    For people there are events and attributes, for `import` what is stored, byte by byte.
    """
    _set_up(settings)

    async def write() -> int:
        users = 0
        async for one in read_users(settings, user):
            sys.stdout.buffer.write(_encode(one) + b"\n")
            users += 1
        sys.stdout.buffer.flush()
        return users

    users = asyncio.run(write())
    click.echo(f"{users:,} users", err=True)
    return 0


@command.command("import", short_help="Write exported users to a changelog.")
@settings_options
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_(settings: Settings, file: Path) -> int:
    """Write exported users to the changelog of a group whose daemons are all stopped.

    The topic may have another number of partitions than that of the export. Users who are there already are refused.
    """
    _set_up(settings)
    users = asyncio.run(write_users(settings, _lines(file)))
    click.echo(f"{users:,} users")
    return 0


@command.command(short_help="Have everything that is kept of a user deleted.")
@settings_options
@click.argument("user")
@click.option(
    "--wait",
    "wait_seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for the daemon that has the user.",
)
def forget(settings: Settings, user: str, wait_seconds: float) -> int:
    """Have everything that is kept of a user deleted: history, profile, owed list, in files and changelog.

    A record in the events topic asks for it, so it holds for all that the user did before, whatever crashes.
    Exit code 1 where no daemon has done it in time; it is done then when one runs.
    """
    _set_up(settings)
    if not 1 <= len(user) <= 128:
        raise InputError(f"user {user[:20]!r}…: expected an id of 1 to 128 characters")
    if asyncio.run(forget_user(settings, user, wait_seconds)):
        click.echo(f"user {user} is forgotten")
        return 0
    click.echo(
        f"mtgr-stream: user {user} will be forgotten as soon as a daemon of group {settings.kafka.group_id} reads the "
        f"request, which none has in {wait_seconds:g} seconds",
        err=True,
    )
    return 1


def _set_up(settings: Settings) -> None:
    configure_logging(settings.log)
    quieten()


def _lines(file: Path) -> Iterator[ExportedUser]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _decode(line)
            except msgspec.MsgspecError as error:
                raise InputError(f"{file}: line {number}: no exported user: {error}") from None
