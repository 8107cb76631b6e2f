"""Why a broker that answers does not let this client in: what aiokafka logs and then calls unreachable."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import ApiVersionRequest

from mtgr.errors import InputError
from stream.settings import KafkaSettings

_ANSWER_SECONDS: Final = 10.0
_CLIENT_OPTIONS: Final = (
    "client_id",
    "security_protocol",
    "ssl_context",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_oauth_token_provider",
)


class KafkaRefused(InputError):
    """A broker answered and does not let this client in: its settings, or the broker's, are wrong."""


def user_of(kafka: KafkaSettings) -> str:
    """Who a client of these settings is to the broker, for people to read."""
    return f"user {kafka.sasl_username}" if kafka.sasl_username else "this client"


def not_allowed(kafka: KafkaSettings, error: KafkaError) -> KafkaRefused | None:
    """What a broker means that does not authorize a request; None for any other error."""
    match error:
        case ClusterAuthorizationFailedError():  # so it answers a producer that may write to no topic at all
            refused = "to write to any topic"
        case TopicAuthorizationFailedError() | GroupAuthorizationFailedError():
            kind = "topic" if isinstance(error, TopicAuthorizationFailedError) else "group"
            names = error.args[0] if error.args else ()
            refused = (
                f"what it asks of {kind} {names if isinstance(names, str) else ', '.join(map(str, names))}"
            )
        case _:
            return None
    return KafkaRefused(f"Kafka does not allow {user_of(kafka)} {refused}: grant what docs/security.md lists")


def is_by_token(options: dict[str, Any]) -> bool:
    """Whether a client of these options authenticates by a token.

    aiokafka takes the broker's word that a token is bad for the end of the handshake, and its client starts: only the
    next request shows it, so such a client asks `why_refused` first.
    """
    return options.get("sasl_mechanism") == "OAUTHBEARER"


async def why_refused(kafka: KafkaSettings, options: dict[str, Any]) -> KafkaRefused | None:
    """Connect to the brokers that the settings name, and say why one refuses; None if one accepts or none answers.

    `options` are those of the client that could not start.
    """
    refusal = None
    for server in options["bootstrap_servers"]:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await _connect(server, options)
            return None
        except (OSError, KafkaError, TimeoutError) as error:
            if (reason := _reason(error, kafka)) is not None:
                refusal = refusal or KafkaRefused(f"Kafka at {server}: {' '.join(reason.split())}")
    return refusal


async def _connect(server: str, options: dict[str, Any]) -> None:
    host, _, port = server.rpartition(":")
    chosen = {name: options[name] for name in _CLIENT_OPTIONS if name in options}
    connection = await create_conn(host.strip("[]"), int(port), **chosen)
    try:
        if is_by_token(options):
            answer = await connection.send(ApiVersionRequest())
            if answer.error_code:
                raise SaslAuthenticationFailed("the token is not valid, or not valid any more")
    finally:
        connection.close()


def _reason(error: Exception, kafka: KafkaSettings) -> str | None:
    """What the user must change; None where the broker may only be away."""
    protocol = f"kafka.security_protocol = {kafka.security_protocol}"
    by_broker = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else None
    match error:
        case ssl.SSLCertVerificationError():
            trusted = kafka.ssl_ca_location or "unset, so those of this system"
            return (
                f"its certificate is refused: {error.verify_message} "
                f"(trusted authorities: kafka.ssl_ca_location = {trusted})"
            )
        case ssl.SSLError():
            spoken = (error.reason or str(error)).replace("_", " ").lower()
            return f"{protocol}: no TLS connection is possible: {spoken}"
        case UnsupportedSaslMechanismError():
            return f"kafka.sasl_mechanism = {kafka.sasl_mechanism}: the broker does not offer it"
        case IllegalSaslStateError():
            return f"{protocol}: the broker does not expect SASL there"
        case SaslAuthenticationFailed():
            whose = (
                "the token" if kafka.sasl_username is None else f"kafka.sasl_username = {kafka.sasl_username}"
            )
            return f"{whose} is not authenticated by {kafka.sasl_mechanism}: {_said(error)}"
        case AuthenticationFailedError():
            return _said(error)
        case _ if by_broker is not None:
            shown = kafka.ssl_certificate_location or "unset"
            said = (by_broker.reason or str(by_broker)).replace("_", " ").lower()
            return f"the broker refuses this client's certificate: {said} (kafka.ssl_certificate_location = {shown})"
        case _:
            return None


def _said(error: Exception) -> str:
    """The words of an error, without the name of its class."""
    return str(error.args[0]) if error.args and error.args[0] else "no reason given"
