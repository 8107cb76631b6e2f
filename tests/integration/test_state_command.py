"""What is kept of users can be looked at, carried to another group, and deleted so that nothing remains."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from daemons import Deployment, inside
from events import EventMaker, all_outgoing
from generators import Script
from records import Outgoing, consume, create_topic, produce, read_to_end
from rocksdict import Options, Rdict

from mtgr.errors import InputError
from mtgr.reference import ReferenceRecommender
from schemas.codecs import decode_list, encode_event
from schemas.events import Profile
from stream.commands.state import _lines
from stream.erasure import erase
from stream.settings import Settings
from stream.tools.user_states import ExportedUser, forget_user, read_users, write_users

ADA, BOB = "ada-who-is-forgotten", "bob"
SECRET = "a-trait-of-hers"


async def exported(settings: Settings, user: str | None = None) -> dict[str, ExportedUser]:
    """What an export holds, by user."""
    return {one.user_id: one async for one in read_users(settings, user)}


def on_disk(directory: Path, *texts: bytes) -> list[Path]:
    """The files of local state that hold one of these texts."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if any(text in path.read_bytes() for text in texts)]


def lists_of(records: list[Any], user: str) -> list[Any]:
    """The lists of one user, decoded."""
    return [decode_list(record.value) for record in records if record.key == user.encode()]


async def test_a_forgotten_user_leaves_files_and_changelog_and_begins_anew(
    kafka: str, deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """No file and no value of the changelog holds a forgotten user; the next list is made of the next events alone."""
    settings = deployment.settings()
    names = deployment.names
    history = EventMaker(3, [ADA, BOB], "old").take(90)
    told = Profile(event_id="p", user_id=ADA, timestamp_ms=5, attributes={"note": SECRET})
    script = Script(reference)
    async with inside(deployment, generator=script.make) as daemon:
        await produce(
            kafka, names.events, [*all_outgoing(history), Outgoing(ADA.encode(), encode_event(told))]
        )
        await consume(kafka, names.lists, lambda records: bool(lists_of(records, ADA)))
        await daemon.until(lambda: daemon.metric("owed_users") == 0, "every list")
        assert await forget_user(settings, ADA, wait_seconds=20)
        assert daemon.metric("events_total", type="forget") == 1
        before = len(lists_of(await read_to_end(kafka, names.lists), ADA))
        again = EventMaker(4, [ADA], "new").take(2)
        await produce(kafka, names.events, all_outgoing(again))
        records = await consume(kafka, names.lists, lambda records: len(lists_of(records, ADA)) > before)
        assert lists_of(records, ADA)[-1].sequence_length <= len(again)
        await daemon.until(lambda: daemon.metric("owed_users") == 0, "every list")
        assert await forget_user(settings, ADA, wait_seconds=20)

    left: dict[bytes, bytes | None] = {}
    for record in await read_to_end(kafka, names.changelog):
        left[record.key] = record.value  # as compaction leaves it
    assert {key[:1] for key, value in left.items() if ADA.encode() in key} == {b"t", b"b", b"p"}
    assert not [key for key, value in left.items() if ADA.encode() in key and value is not None]
    assert not [key for key, value in left.items() if value and SECRET.encode() in value]
    assert (await exported(settings)).keys() == {BOB}

    for store in (path.parent for path in deployment.state_directory().rglob("CURRENT")):
        db = Rdict(str(store), Options(raw_mode=True))
        erase(db)  # the daemon does so within the hour
        db.close()
        Rdict(str(store), Options(raw_mode=True)).close()
    assert on_disk(deployment.state_directory(), ADA.encode(), SECRET.encode()) == []
    assert on_disk(deployment.state_directory(), BOB.encode())


async def test_what_no_daemon_reads_yet_is_said_to_be_undone(deployment: Deployment) -> None:
    """Without a daemon a user is not forgotten in time; the request stays and is carried out by the next one."""
    assert not await forget_user(deployment.settings(), ADA, wait_seconds=0.5)


async def test_an_export_is_readable_and_an_import_makes_the_same_state(
    kafka: str, deployment: Deployment, reference: ReferenceRecommender, tmp_path: Path
) -> None:
    """What is exported shows events as they were sent; imported into another group it is there to the byte."""
    events = EventMaker(5, [ADA, BOB], "e").take(70)
    settings = deployment.settings()
    script = Script(reference)
    async with inside(deployment, generator=script.make) as daemon:
        await produce(kafka, deployment.names.events, all_outgoing(events))
        await daemon.until(
            lambda: (
                sum(
                    daemon.metric("events_total", type=kind)
                    for kind in ("watch", "like", "favorite", "share")
                )
                == len(events)
                and daemon.metric("owed_users") == 0
            ),
            "every list",
        )
        with pytest.raises(InputError, match="1 daemons of this group run"):
            await write_users(settings, [])
    users = await exported(settings)
    assert users.keys() == {ADA, BOB}
    last = [event for event in events if event.user_id == ADA][-1]
    assert users[ADA].events[-1]["video_id"] == last.video_id
    assert users[ADA].events[-1]["timestamp_ms"] == last.timestamp_ms
    assert (await exported(settings, ADA)) == {ADA: users[ADA]}
    assert await exported(settings, "nobody") == {}
    file = tmp_path / "users.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(user) + b"\n" for user in users.values()))
    with pytest.raises(InputError, match=r"user '\S+' is in topic .* already"):
        await write_users(settings, _lines(file))

    changelog = f"{deployment.names.changelog}-2"
    other = deployment.settings(
        changes={"kafka.group_id": f"{deployment.names.group}-2", "topics.changelog": changelog}
    )
    await create_topic(kafka, other.changelog_topic, partitions=3, config={"cleanup.policy": "compact"})
    assert await write_users(other, _lines(file)) == 2
    arrived = await exported(other)
    for user_id, user in users.items():
        assert arrived[user_id].events == user.events
        assert arrived[user_id].attributes == user.attributes
        assert arrived[user_id].stored.keys() == user.stored.keys()


async def test_a_damaged_export_is_refused_by_its_line(tmp_path: Path, deployment: Deployment) -> None:
    """Nothing is written of a user whose exported state does not read back."""
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps({"user_id": "u"}) + "\n")
    with pytest.raises(InputError, match="line 1: no exported user"):
        await asyncio.to_thread(list, _lines(file))
    with pytest.raises(InputError, match="user 'u': what was exported does not read back"):
        await write_users(deployment.settings(), [ExportedUser("u", {"AAAA": "AAAA"})])
