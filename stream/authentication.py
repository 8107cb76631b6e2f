"""How the daemon proves to Kafka who it is, and how it knows Kafka: TLS contexts and OAUTHBEARER tokens."""

from __future__ import annotations

import importlib
import inspect
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import AuthenticationFailedError

from mtgr.errors import InputError
from stream.settings import KafkaSettings, Secret

_MAX_TOKEN_BYTES: Final = 1 << 20


class TokenUnavailable(AuthenticationFailedError):  # type: ignore[misc]
    """There is no token to authenticate with now; the message names the setting and never holds a token."""


def tls_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """A context that trusts the set authorities, checks host names and shows this client's certificate, if any.

    Raises InputError naming the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=kafka.ssl_ca_location)
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"kafka.ssl_ca_location = {kafka.ssl_ca_location}: not a PEM file: {error}"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if kafka.ssl_certificate_location is not None:
        _show_certificate(context, kafka, kafka.ssl_certificate_location)
    return context


def _show_certificate(context: ssl.SSLContext, kafka: KafkaSettings, certificate: Path) -> None:
    password = kafka.ssl_key_password.reveal() if kafka.ssl_key_password else ""
    try:
        # always a password, if an empty one: without, OpenSSL would ask for it at the terminal
        context.load_cert_chain(certificate, kafka.ssl_key_location, lambda: password)
    except OSError as error:  # of which ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise InputError(
            f"kafka.ssl_key_location = {kafka.ssl_key_location}: cannot be used with "
            f"kafka.ssl_certificate_location = {certificate}: "
            f"{(reason or 'not PEM files, or kafka.ssl_key_password is wrong').replace('_', ' ').lower()}"
        ) from None


def token_provider(kafka: KafkaSettings) -> AbstractTokenProvider:
    """What gives aiokafka the token for OAUTHBEARER at every connection, of the file or the function that is set.

    Raises InputError if the function is not there.
    """
    if kafka.sasl_oauthbearer_token_file is not None:
        return TokenFile(kafka.sasl_oauthbearer_token_file)
    assert kafka.sasl_oauthbearer_provider is not None
    return TokenFunction(kafka.sasl_oauthbearer_provider)


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """A token that another program keeps fresh in a file, as Kubernetes does with service account tokens."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        """The token that is in the file now; raises TokenUnavailable."""
        setting = f"kafka.sasl_oauthbearer_token_file = {self._path}"
        try:
            with self._path.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES)
        except OSError as error:
            raise TokenUnavailable(f"{setting}: cannot be read: {error.strerror}") from None
        return _checked(token.rstrip(b"\r\n").decode("latin-1"), setting)


class TokenFunction(AbstractTokenProvider):  # type: ignore[misc]
    """A token that a function of the operator's gets, from an identity provider for instance.

    The function takes nothing and returns the token, or an awaitable of it; it keeps what it has for as long as that
    is valid, since it is called at every connection.
    """

    def __init__(self, name: str) -> None:
        """`name` is package.module:function; raises InputError if there is none."""
        self._name = name
        module, _, function = name.partition(":")
        try:
            self._function: Callable[[], str | Awaitable[str]] = getattr(
                importlib.import_module(module), function
            )
        except (ImportError, AttributeError) as error:
            raise InputError(f"kafka.sasl_oauthbearer_provider = {name}: {error}") from None
        if not callable(self._function):
            raise InputError(f"kafka.sasl_oauthbearer_provider = {name}: is no function")

    async def token(self) -> str:
        """The token that the function returns; raises TokenUnavailable."""
        setting = f"kafka.sasl_oauthbearer_provider = {self._name}"
        try:
            token: Any = self._function()
            if inspect.isawaitable(token):
                token = await token
        except Exception as error:  # noqa: BLE001  whatever it is, aiokafka's tasks must not end by it
            # its kind alone: its text is another program's, and may hold what was sent
            raise TokenUnavailable(f"{setting}: it raised {type(error).__name__}") from None
        return _checked(token, setting)


def _checked(token: object, setting: str) -> str:
    if isinstance(token, Secret):
        token = token.reveal()
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise TokenUnavailable(f"{setting}: gives no token: expected one line of printable ASCII")
    return token
