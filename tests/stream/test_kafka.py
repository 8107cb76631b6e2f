"""Clients are made from the settings and wait for a broker no longer than was set."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from mtgr.errors import InputError
from stream.authentication import TokenUnavailable
from stream.kafka import KafkaUnreachable, client_options, connected, producer_options
from stream.refusals import KafkaRefused
from stream.settings import KafkaSettings, Secret


class Client:
    """Fails to start so many times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.started = self.stopped = 0

    async def start(self) -> None:
        self.started += 1
        if self.started <= self.failures:
            raise self.error

    async def stop(self) -> None:
        self.stopped += 1


def test_every_broker_is_named_to_the_client() -> None:
    """Several servers may be separated by commas and blanks."""
    options = client_options(KafkaSettings(bootstrap_servers="a:1, b:2"))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert "ssl_context" not in options
    assert "sasl_mechanism" not in options


def test_encryption_and_password_reach_the_client() -> None:
    """SASL over TLS hands the client a context and the password itself."""
    kafka = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="me",
        sasl_password=Secret("word"),
    )
    options = client_options(kafka)
    assert options["ssl_context"].check_hostname
    assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert options["ssl_context"].minimum_version >= ssl.TLSVersion.TLSv1_2
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("SCRAM-SHA-512", "me")
    assert options["sasl_plain_password"] == "word"


def test_a_file_that_is_no_authority_is_refused(tmp_path: Path) -> None:
    """The message names the setting."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("not a certificate")
    with pytest.raises(InputError, match=r"kafka\.ssl_ca_location = .*not a PEM file"):
        client_options(KafkaSettings(security_protocol="SSL", ssl_ca_location=wrong))


def test_producers_are_idempotent_and_compress_as_was_set() -> None:
    """A retried batch must not be there twice."""
    assert producer_options(KafkaSettings())["compression_type"] is None
    options = producer_options(KafkaSettings(compression="zstd"))
    assert (options["compression_type"], options["enable_idempotence"]) == ("zstd", True)


async def test_a_broker_that_is_late_is_waited_for() -> None:
    """A client is started again until it connects, and stopped once, at the end."""
    client = Client(2, KafkaConnectionError("not yet"))
    async with connected(client, KafkaSettings()):
        assert (client.started, client.stopped) == (3, 0)
    assert client.stopped == 1


async def test_waiting_ends_at_the_time_that_was_set() -> None:
    """No broker for connect_timeout_seconds is one line that names it, and the client is closed."""
    client = Client(1_000, ConnectionRefusedError("no"))
    with pytest.raises(KafkaUnreachable, match=r"b:1: no broker answered for 0\.5 seconds"):
        async with connected(client, KafkaSettings(bootstrap_servers="b:1", connect_timeout_seconds=0.5)):
            pytest.fail("it cannot be connected")
    assert client.stopped == 1


async def test_what_no_retry_can_help_is_raised_at_once() -> None:
    """A refusal is not waited on; who is not allowed what, and what to grant, is in one line."""
    client = Client(1_000, TopicAuthorizationFailedError("lists"))
    with pytest.raises(KafkaRefused, match=r"does not allow this client what it asks of topic lists: grant"):
        async with connected(client, KafkaSettings()):
            pytest.fail("it cannot be connected")
    assert (client.started, client.stopped) == (1, 1)


def test_a_provider_of_tokens_that_is_not_there_is_refused() -> None:
    """A wrong module, a wrong name in it and what is no function are told by the setting."""
    for name in ("no_such_module:token", "os:no_such_name", "os:sep"):
        kafka = KafkaSettings(
            security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", sasl_oauthbearer_provider=name
        )
        with pytest.raises(InputError, match=rf"kafka\.sasl_oauthbearer_provider = {name}: "):
            client_options(kafka)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"t\x01auth=other", "é".encode()])
async def test_what_is_no_token_is_not_sent(tmp_path: Path, content: bytes) -> None:
    """A token that could end its field in the handshake, or is none, is refused without being shown."""
    (tmp_path / "token").write_bytes(content)
    kafka = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="OAUTHBEARER",
        sasl_oauthbearer_token_file=tmp_path / "token",
    )
    provider = client_options(kafka)["sasl_oauth_token_provider"]
    with pytest.raises(TokenUnavailable, match=r"kafka\.sasl_oauthbearer_token_file = .*: gives no token"):
        await provider.token()
