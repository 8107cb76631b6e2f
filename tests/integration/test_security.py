"""Promises before a broker with TLS, SASL and an authorizer: who is let in, and what the others are told."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from checkpoints import tiny_checkpoint
from click.testing import CliRunner
from daemons import Deployment, deployed, inside
from events import EventMaker, all_outgoing
from generators import Script, served
from records import TopicNames, consume, create_topic, eventually, produce
from secure_brokers import (
    KEY_PASSWORD,
    PASSWORD,
    PLAIN_USERS,
    SCRAM_USER,
    SecureBroker,
    unsecured_token,
)

from mtgr.errors import InputError
from mtgr.reference import ReferenceRecommender
from stream.commands.topics import command as topics_command
from stream.errors import Fatal
from stream.permissions import daemon_permissions
from stream.settings import Settings, load_settings
from stream.topics import ensure_topics, review_topics
from stream.transactions import transactional_ids_of

USERS = ["ada", "béa", "cy"]


def the_token() -> str:
    """What the settings of a test name as the source of tokens."""
    return unsecured_token()


async def the_awaited_token() -> str:
    """The same, as a function that has to wait for it."""
    await asyncio.sleep(0)
    return unsecured_token()


def the_failing_provider() -> str:
    """A provider that lets slip what it sent."""
    raise RuntimeError(f"401 for client_secret={PASSWORD}")


@pytest.fixture(scope="module")
def broker(secure_kafka: SecureBroker) -> SecureBroker:
    """The broker that asks everybody who they are."""
    return secure_kafka


def settings(*options: Mapping[str, object]) -> Settings:
    """Settings of a client; the last mapping wins, and a value of None leaves a setting out."""
    merged: dict[str, object] = {"kafka.connect_timeout_seconds": 20}
    for part in options:
        merged |= part
    return load_settings(None, {}, [f"{key}={value}" for key, value in merged.items() if value is not None])


async def reach(*options: Mapping[str, object]) -> None:
    """Connect, authenticate and ask for something."""
    await review_topics(settings(*options), create=False)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_scram_lets_the_right_password_in(broker: SecureBroker, mechanism: str, tmp_path: Path) -> None:
    """A user that the cluster keeps is let in, with the password from a file."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    await reach(
        broker.settings(
            "SECURE",
            sasl_mechanism=mechanism,
            sasl_username=SCRAM_USER,
            sasl_password_file=tmp_path / "password",
        )
    )


async def test_plain_and_unencrypted_scram_let_the_right_password_in(broker: SecureBroker) -> None:
    """PLAIN over TLS, and SCRAM where the network itself is trusted."""
    await reach(broker.plain("owner"))
    await reach(
        broker.settings(
            "BARE", sasl_mechanism="SCRAM-SHA-512", sasl_username=SCRAM_USER, sasl_password=PASSWORD
        )
    )


@pytest.mark.parametrize("provider", ["the_token", "the_awaited_token"])
async def test_a_token_of_a_function_is_let_in(
    broker: SecureBroker, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function that the settings name is asked, whether it returns the token or an awaitable of it."""
    monkeypatch.setitem(sys.modules, "token_functions", sys.modules[__name__])
    await reach(
        broker.settings(
            "SECURE", sasl_mechanism="OAUTHBEARER", sasl_oauthbearer_provider=f"token_functions:{provider}"
        )
    )


async def test_a_token_file_is_read_at_every_connection(broker: SecureBroker, tmp_path: Path) -> None:
    """A token that was renewed is the one that the next connection shows."""
    file = tmp_path / "token"
    options = broker.settings("SECURE", sasl_mechanism="OAUTHBEARER", sasl_oauthbearer_token_file=file)
    file.write_text(unsecured_token(seconds=-60))
    with pytest.raises(InputError, match="the token is not valid"):
        await reach(options)
    file.write_text(unsecured_token() + "\n")
    await reach(options)


async def test_a_certificate_of_the_client_is_let_in(broker: SecureBroker, tmp_path: Path) -> None:
    """Where the broker asks for one, a certificate of its authority opens the door, the key encrypted or not."""
    for password in (None, KEY_PASSWORD):
        name = "locked" if password else "open"
        certificate, key = broker.authority.sign(name, password=password)
        await reach(
            broker.settings(
                "MUTUAL",
                ssl_certificate_location=certificate,
                ssl_key_location=key,
                ssl_key_password=password,
            )
        )


_Wrong = Callable[[SecureBroker, Path], dict[str, object]]


def _wrong_password(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.plain("owner", password="Pl4nted-Secret-wrong")


def _unknown_user(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.plain("nobody")


def _wrong_scram_password(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.settings(
        "SECURE",
        sasl_mechanism="SCRAM-SHA-256",
        sasl_username=SCRAM_USER,
        sasl_password="Pl4nted-Secret-wrong",
    )


def _wrong_authority(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.plain("owner") | {"kafka.ssl_ca_location": broker.other_authority.certificate}


def _no_authority(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.plain("owner") | {"kafka.ssl_ca_location": None}


def _wrong_host(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.settings(
        "SECURE", host="localhost", sasl_mechanism="PLAIN", sasl_username="owner", sasl_password=PASSWORD
    )


def _mechanism_not_offered(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.settings("BARE", sasl_mechanism="PLAIN", sasl_username="owner", sasl_password=PASSWORD)


def _no_sasl_there(broker: SecureBroker, directory: Path) -> dict[str, object]:
    secure = broker.settings(
        "BARE", sasl_mechanism="SCRAM-SHA-512", sasl_username=SCRAM_USER, sasl_password=PASSWORD
    )
    return secure | {"kafka.bootstrap_servers": broker.servers}


def _no_certificate(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.settings("MUTUAL")


def _foreign_certificate(broker: SecureBroker, directory: Path) -> dict[str, object]:
    certificate, key = broker.other_authority.sign("stranger")
    return broker.settings("MUTUAL", ssl_certificate_location=certificate, ssl_key_location=key)


def _failing_provider(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.settings(
        "SECURE",
        sasl_mechanism="OAUTHBEARER",
        sasl_oauthbearer_provider="token_functions:the_failing_provider",
    )


def _no_token(broker: SecureBroker, directory: Path) -> dict[str, object]:
    return broker.settings(
        "SECURE", sasl_mechanism="OAUTHBEARER", sasl_oauthbearer_token_file=directory / "none"
    )


@pytest.mark.parametrize(
    ("make_wrong", "named"),
    [
        (_wrong_password, ["kafka.sasl_username = owner", "PLAIN", "Invalid username or password"]),
        (_unknown_user, ["kafka.sasl_username = nobody", "PLAIN"]),
        (_wrong_scram_password, [f"kafka.sasl_username = {SCRAM_USER}", "SCRAM-SHA-256"]),
        (_wrong_authority, ["certificate", "kafka.ssl_ca_location = ", "ca.pem"]),
        (_no_authority, ["certificate", "kafka.ssl_ca_location = unset"]),
        (_wrong_host, ["certificate", "localhost"]),
        (_mechanism_not_offered, ["kafka.sasl_mechanism = PLAIN", "does not offer"]),
        (_no_sasl_there, ["kafka.security_protocol = SASL_PLAINTEXT"]),
        (_no_certificate, ["kafka.ssl_certificate_location = unset"]),
        (_foreign_certificate, ["kafka.ssl_certificate_location = ", "stranger.pem"]),
        (_failing_provider, ["the_failing_provider", "RuntimeError"]),
        (_no_token, ["kafka.sasl_oauthbearer_token_file", "No such file"]),
    ],
)
async def test_who_is_not_let_in_is_told_why_at_once(
    broker: SecureBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make_wrong: _Wrong,
    named: list[str],
) -> None:
    """One line names broker, setting and reason, long before the patience with a broker that is away ends."""
    monkeypatch.setitem(sys.modules, "token_functions", sys.modules[__name__])
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        await reach(make_wrong(broker, tmp_path))
    message = str(caught.value)
    assert time.monotonic() - started < 10
    assert len(message.splitlines()) == 1
    assert all(part in message for part in ("Kafka at 127.0.0.1", *named) if make_wrong is not _wrong_host), (
        message
    )
    assert "Pl4nted-Secret" not in message + caplog.text


async def test_a_port_that_hangs_up_on_tls_is_waited_for(broker: SecureBroker) -> None:
    """A connection that is closed unanswered may be a broker that restarts; the end of patience names the protocol."""
    bare = broker.settings("BARE")["kafka.bootstrap_servers"]
    with pytest.raises(InputError, match=r"no broker answered for 1 seconds.*reachable by SASL_SSL"):
        await reach(
            broker.plain("owner"), {"kafka.bootstrap_servers": bare, "kafka.connect_timeout_seconds": 1}
        )


def test_a_command_ends_with_exit_code_2(broker: SecureBroker) -> None:
    """A command that is not let in says so as it says anything that is wrong with its settings."""
    options = _wrong_password(broker, Path())
    flags = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(topics_command, ["--check", *flags])
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"kafka.ssl_key_password": "Pl4nted-Secret-wrong"}, "kafka.ssl_key_location"),
        ({"kafka.ssl_key_password": None}, "kafka.ssl_key_location"),
        ({"kafka.ssl_key_location": "/etc/hosts"}, "kafka.ssl_key_location = /etc/hosts"),
        ({"kafka.ssl_ca_location": "/etc/hosts"}, "kafka.ssl_ca_location = /etc/hosts"),
    ],
)
async def test_files_that_do_not_fit_are_named(
    broker: SecureBroker, broken: dict[str, object], named: str
) -> None:
    """A key that its password does not open, or a file that holds none, is told from a broker that refuses."""
    certificate, key = broker.authority.sign("misused", password=KEY_PASSWORD)
    options = broker.settings(
        "MUTUAL",
        ssl_certificate_location=certificate,
        ssl_key_location=key,
        ssl_key_password=KEY_PASSWORD,
    )
    with pytest.raises(InputError) as caught:
        await reach(options, broken)
    assert named in str(caught.value)
    assert "Pl4nted-Secret" not in str(caught.value)


# ---- what a user may do


@pytest.fixture
async def names(broker: SecureBroker, topic_names: TopicNames) -> TopicNames:
    """The four topics on the broker, made by its owner."""
    for name in (topic_names.events, topic_names.lists, topic_names.dead_letters):
        await create_topic(broker.servers, name, partitions=2)
    await create_topic(
        broker.servers, topic_names.changelog, partitions=2, config={"cleanup.policy": "compact"}
    )
    return topic_names


@pytest.fixture(scope="module")
def reference_model(tmp_path_factory: pytest.TempPathFactory) -> ReferenceRecommender:
    """A tiny model of random weights."""
    return ReferenceRecommender(tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny"))


@pytest.fixture
def guarded(
    broker: SecureBroker, names: TopicNames, reference_model: ReferenceRecommender, tmp_path: Path
) -> Iterator[Deployment]:
    """Daemons on the guarded broker."""
    with deployed(broker.servers, names, reference_model.checkpoint.directory, tmp_path) as deployment:
        yield deployment


async def test_the_listed_permissions_are_enough_and_each_is_needed(
    broker: SecureBroker, guarded: Deployment, reference_model: ReferenceRecommender
) -> None:
    """A daemon with exactly the documented permissions does all its work; without one it names the one it lacks."""
    needed = daemon_permissions(guarded.settings())
    lacking = dict(zip(PLAIN_USERS[1:], needed, strict=False))
    assert len(lacking) == len(needed) == 10
    await broker.grant(
        (user, one.resource, one.name, one.operation)
        for user in ("owner", *lacking)
        for one in needed
        if lacking.get(user) != one
    )

    async def granted() -> bool:
        try:
            await ensure_topics(guarded.settings(changes=broker.plain("owner")))
        except InputError:
            return False
        return True

    await eventually(granted, "the owner's permissions")

    for user, one in lacking.items():
        with pytest.raises(InputError) as caught:
            await ensure_topics(guarded.settings(changes=broker.plain(user)))
        who, _, rest = str(caught.value).partition(": ")
        missing = rest.partition(";")[0].split(", ")
        assert who == f"Kafka does not allow user {user}"
        assert missing[0] == str(one)
        # of a topic that may not be described the broker tells nothing, so that its other permissions are named too
        assert all(other.endswith(f" {one.name}") for other in missing)

    changes = broker.plain("owner")
    script = Script(reference_model)
    good = all_outgoing(EventMaker(1, USERS).take(20))
    async with inside(guarded, changes=changes, generator=script.make) as daemon:
        await produce(broker.servers, guarded.names.events, [*good, good[0]._replace(value=b"{")])
        await consume(broker.servers, guarded.names.dead_letters, 1)
        await consume(broker.servers, guarded.names.lists, 1)
        await consume(broker.servers, guarded.names.changelog, 1)
        await daemon.until(lambda: daemon.metric("owed_users") == 0, "every list")
    async with inside(guarded, "second", changes, generator=script.make) as daemon:  # restores
        assert daemon.metric("restored_records_total") > 0


async def test_exactly_once_needs_the_transactional_ids_besides(
    broker: SecureBroker, guarded: Deployment, reference_model: ReferenceRecommender
) -> None:
    """With the documented permissions transactions are written; without those on their ids the daemon says so."""
    user = "lacking-13"
    settings_ = guarded.settings()
    await broker.grant((user, one.resource, one.name, one.operation) for one in daemon_permissions(settings_))
    changes = {**broker.plain(user), "stream.delivery": "exactly_once"}
    script = Script(reference_model)

    async def allowed() -> bool:
        try:
            await ensure_topics(guarded.settings(changes=changes))
        except InputError:
            return False
        return True

    await eventually(allowed, "the user's permissions")
    with pytest.raises(Fatal, match=r"(?i)transactional"):
        async with inside(guarded, "refused", changes, generator=script.make):
            pytest.fail("it must not get ready")
    prefix = transactional_ids_of(settings_.kafka.group_id)
    await broker.grant((user, "transactional id", prefix, op) for op in ("Write", "Describe"))
    await produce(broker.servers, guarded.names.events, all_outgoing(EventMaker(1, USERS).take(20)))
    async with inside(guarded, "second", changes, generator=script.make) as daemon:
        await consume(broker.servers, guarded.names.lists, 1)
        await daemon.until(lambda: daemon.metric("owed_users") == 0, "every list")


async def test_all_that_is_missing_is_named_at_once(broker: SecureBroker, guarded: Deployment) -> None:
    """An operator who forgot to grant anything reads the whole list in one line."""
    with pytest.raises(InputError) as caught:
        await ensure_topics(guarded.settings(changes=broker.plain("lacking-15")))
    message = str(caught.value)
    for one in daemon_permissions(guarded.settings()):
        assert str(one) in message
    assert len(message.splitlines()) == 1


async def test_who_may_not_create_topics_is_told(broker: SecureBroker, guarded: Deployment) -> None:
    """A missing topic that the daemon may not create is named with the permission that would let it."""
    missing = f"{guarded.names.lists}-new"
    needed = daemon_permissions(guarded.settings(changes={"topics.lists": missing}))
    user = "lacking-14"
    await broker.grant((user, one.resource, one.name, one.operation) for one in needed)
    options = guarded.settings(changes={**broker.plain(user), "topics.lists": missing})

    async def told() -> bool:
        try:
            await ensure_topics(options)
        except InputError as error:
            return f"Create on topic {missing}" in str(error)
        return False

    await eventually(told, "the missing permission")
    await broker.grant([(user, "topic", missing, "Create")])

    async def created() -> bool:
        try:
            await ensure_topics(options)
        except InputError:
            return False
        return True

    await eventually(created, "the topic")


# ---- secrets


async def test_planted_secrets_are_nowhere_to_be_read(
    broker: SecureBroker, guarded: Deployment, reference_model: ReferenceRecommender
) -> None:
    """A daemon at its most talkative shows no secret in logs, metrics, printed settings or a failure's traceback."""
    await broker.grant(
        ("owner", one.resource, one.name, one.operation) for one in daemon_permissions(guarded.settings())
    )
    certificate, key = broker.authority.sign("daemon", password=KEY_PASSWORD)
    secrets = {
        **broker.plain("owner"),
        "kafka.ssl_certificate_location": certificate,
        "kafka.ssl_key_location": key,
        "kafka.ssl_key_password": KEY_PASSWORD,
        "log.level": "debug",
    }
    async with served(Script(reference_model)) as url:
        guarded.use_server(url)
        running = guarded.start(changes=secrets)
        shut_out = guarded.start("shut-out", {**secrets, "kafka.sasl_password": "Pl4nted-Secret-wrong"})
        await running.ready()
        await produce(broker.servers, guarded.names.events, all_outgoing(EventMaker(1, USERS).take(5)))
        await consume(broker.servers, guarded.names.lists, 1)
        shown = [await asyncio.to_thread(running._get, path) for path in ("/metrics", "/readyz", "/healthz")]
        await running.drain()
        assert await shut_out.ended() == 2
    (line,) = shut_out.plain_output()
    assert "kafka.sasl_username = owner" in line
    printed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream", "run", "--config", str(running.config), "--print-config"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await printed.communicate()
    assert b"********" in output
    everything = [running.child.output(), shut_out.child.output(), output.decode(), str(shown)]
    assert not [text for text in everything if "Pl4nted-Secret" in text]
