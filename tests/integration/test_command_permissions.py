"""What docs/security.md says that each command must be allowed is enough for it, and who lacks it is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from daemons import deployed, inside
from events import EventMaker, all_outgoing
from generators import Script
from records import TopicNames, consume, create_topic, eventually, produce
from secure_brokers import TOOL_USERS, SecureBroker
from tools import settings_for

from mtgr.errors import InputError
from mtgr.reference import ReferenceRecommender
from schemas.codecs import JSON
from stream.settings import Settings
from stream.tools.list_feed import ListFeed
from stream.tools.pacing import Unpaced
from stream.tools.producer import EventProducer, SendFailed
from stream.tools.repairs import no_repair
from stream.tools.replay import Replayer
from stream.tools.user_states import forget_user, read_users, write_users

pytestmark = pytest.mark.broker
USERS = ["ada", "béa", "cy"]


@pytest.fixture
async def names(
    secure_kafka: SecureBroker, topic_names: TopicNames, reference: ReferenceRecommender, tmp_path: Path
) -> TopicNames:
    """Topics in which a daemon has left lists, states and a dead letter."""
    servers = secure_kafka.servers
    for name in (topic_names.events, topic_names.lists, topic_names.dead_letters):
        await create_topic(servers, name, partitions=2)
    await create_topic(servers, topic_names.changelog, partitions=2, config={"cleanup.policy": "compact"})
    events = all_outgoing(EventMaker(1, USERS).each())
    with deployed(servers, topic_names, reference.checkpoint.directory, tmp_path) as deployment:
        async with inside(deployment, generator=Script(reference).make) as daemon:
            await produce(servers, topic_names.events, [*events, events[0]._replace(value=b"{")])
            await consume(servers, topic_names.dead_letters, 1)
            await daemon.until(lambda: daemon.metric("lists_total") >= len(USERS), "every list")
    return topic_names


async def send(settings: Settings) -> None:
    """What `produce` does."""
    producer = EventProducer(settings.kafka, settings.topics.events, Unpaced(), JSON, lambda sent: None)
    await producer.run(iter([EventMaker(2, USERS).take(3)]))


async def show(settings: Settings) -> None:
    """What `tail` does on a pipe."""
    async with ListFeed.open(settings, "beginning") as feed:
        assert await feed.next(timeout_seconds=10)


async def replay(settings: Settings) -> None:
    """What `replay` does."""
    summary = await Replayer(settings, no_repair).run()
    assert set(summary.left) == {("decode", "MalformedEvent")}


async def export(settings: Settings) -> None:
    """What `state inspect` and `state export` do."""
    assert {user.user_id async for user in read_users(settings)} == set(USERS)


async def forget(settings: Settings) -> None:
    """What `state forget` does while no daemon runs."""
    assert not await forget_user(settings, "ada", wait_seconds=0.5)


async def test_each_command_needs_what_is_documented_and_no_more(
    secure_kafka: SecureBroker, names: TopicNames
) -> None:
    """A user for each command, with exactly the documented permissions, gets it done; one without any is told."""
    servers, another = secure_kafka.servers, f"{names.changelog}-another"
    await create_topic(servers, another, partitions=2, config={"cleanup.policy": "compact"})
    exported = [user async for user in read_users(settings_for(servers, names))]

    async def bring(settings: Settings) -> None:
        assert await write_users(settings, exported) == len(USERS)

    commands: dict[str, tuple[Callable[[Settings], Awaitable[None]], list[tuple[str, str, str]]]] = {
        "producer": (send, [("topic", names.events, "Write")]),
        "reader": (show, [("topic", names.lists, "Read")]),
        "repairer": (
            replay,
            [
                ("group", f"{names.group}-replay", "Read"),
                ("topic", names.dead_letters, "Read"),
                ("topic", names.events, "Write"),
            ],
        ),
        "keeper": (export, [("topic", names.changelog, "Read")]),
        "mover": (
            bring,
            [("group", names.group, "Describe"), ("topic", another, "Read"), ("topic", another, "Write")],
        ),
        "eraser": (forget, [("group", names.group, "Describe"), ("topic", names.events, "Write")]),
    }
    assert {*commands, "stranger"} == set(TOOL_USERS)

    def settings(user: str) -> Settings:
        options = {key.replace(".", "__"): value for key, value in secure_kafka.plain(user).items()}
        options["kafka__connect_timeout_seconds"] = 20
        if user == "mover":
            options["topics__changelog"] = another
        return settings_for(str(options.pop("kafka__bootstrap_servers")), names, **options)

    for work, _ in commands.values():
        with pytest.raises(InputError, match="user stranger"):
            await work(settings("stranger"))

    for user, (work, needed) in commands.items():
        for number, (resource, name, operation) in enumerate(needed):
            if number:  # all that were granted so far, and not the rest
                with pytest.raises(InputError, match=f"user {user}"):
                    await work(settings(user))
            await secure_kafka.grant([(user, resource, name, operation)])

        async def done(work: Callable[[Settings], Awaitable[None]] = work, user: str = user) -> bool:
            try:
                await work(settings(user))
            except (InputError, SendFailed):  # a permission takes hold within moments
                return False
            return True

        await eventually(done, f"what {user} does")
