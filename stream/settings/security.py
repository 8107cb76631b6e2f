"""Checks of the settings by which the daemon proves who it is, and reading the secrets that are kept in files."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from stream.settings.checker import Checker
from stream.settings.groups import KafkaSettings
from stream.settings.secret import Secret

MAX_SECRET_BYTES: Final = 65_536

_PASSWORD: Final = ("sasl_username", "sasl_password", "sasl_password_file")
_TOKEN: Final = ("sasl_oauthbearer_token_file", "sasl_oauthbearer_provider")
_TLS: Final = (
    "ssl_ca_location",
    "ssl_certificate_location",
    "ssl_key_location",
    "ssl_key_password",
    "ssl_key_password_file",
)
_OAUTHBEARER: Final = "OAUTHBEARER"


def check_security(checker: Checker, kafka: KafkaSettings) -> KafkaSettings:
    """The settings with their passwords read from files; raises InputError where they contradict each other."""
    protocol = checker.shown("kafka.security_protocol")
    if kafka.security_protocol.startswith("SASL"):
        _check_sasl(checker, kafka)
    else:
        right = f"is used by SASL_PLAINTEXT and SASL_SSL only, not with {protocol}"
        _refuse_any(checker, kafka, ("sasl_mechanism", *_PASSWORD, *_TOKEN), right)
    if "SSL" in kafka.security_protocol:
        _check_tls(checker, kafka)
    else:
        _refuse_any(checker, kafka, _TLS, f"is used by SSL and SASL_SSL only, not with {protocol}")
    for name in ("sasl_password", "ssl_key_password"):
        if getattr(kafka, f"{name}_file") is not None:
            kafka = structs.replace(kafka, **{name: _read_password(checker, f"kafka.{name}_file")})
    return kafka


def _check_sasl(checker: Checker, kafka: KafkaSettings) -> None:
    protocol, mechanism = checker.shown("kafka.security_protocol"), checker.shown("kafka.sasl_mechanism")
    if kafka.sasl_mechanism is None:
        checker.refuse("kafka.sasl_mechanism", f"required by {protocol}")
    if kafka.sasl_mechanism == _OAUTHBEARER:
        _refuse_any(checker, kafka, _PASSWORD, f"is not used with {mechanism}")
        if all(getattr(kafka, name) is None for name in _TOKEN):
            right = f"this or kafka.sasl_oauthbearer_provider is required by {mechanism}"
            checker.refuse("kafka.sasl_oauthbearer_token_file", right)
        _only_one(checker, kafka, *_TOKEN)
        return
    _refuse_any(checker, kafka, _TOKEN, f"is used by {_OAUTHBEARER} only, not with {mechanism}")
    if kafka.sasl_username is None:
        checker.refuse("kafka.sasl_username", f"required by {protocol}")
    if kafka.sasl_password is None and kafka.sasl_password_file is None:
        right = f"this or kafka.sasl_password_file is required by {protocol}"
        checker.refuse("kafka.sasl_password", right)
    _only_one(checker, kafka, "sasl_password", "sasl_password_file")


def _check_tls(checker: Checker, kafka: KafkaSettings) -> None:
    for name in ("ssl_ca_location", "ssl_certificate_location", "ssl_key_location"):
        path = getattr(kafka, name)
        if path is not None and not path.is_file():
            checker.refuse(f"kafka.{name}", "no such file")
    if kafka.ssl_certificate_location is None:
        right = "is of no use without kafka.ssl_certificate_location"
        _refuse_any(checker, kafka, ("ssl_key_location", "ssl_key_password", "ssl_key_password_file"), right)
    elif kafka.ssl_key_location is None:
        checker.refuse(
            "kafka.ssl_key_location", f"required by {checker.shown('kafka.ssl_certificate_location')}"
        )
    _only_one(checker, kafka, "ssl_key_password", "ssl_key_password_file")


def _refuse_any(checker: Checker, kafka: KafkaSettings, names: tuple[str, ...], right: str) -> None:
    for name in names:
        if getattr(kafka, name) is not None:
            checker.refuse(f"kafka.{name}", right)


def _only_one(checker: Checker, kafka: KafkaSettings, one: str, other: str) -> None:
    if getattr(kafka, one) is not None and getattr(kafka, other) is not None:
        checker.refuse(f"kafka.{one}", f"contradicts {checker.shown(f'kafka.{other}')}")


def _read_password(checker: Checker, key: str) -> Secret:
    try:
        with checker.value(key).open("rb") as file:
            password = file.read(MAX_SECRET_BYTES).decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        checker.refuse(key, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        checker.refuse(key, "is not UTF-8 text")
    if not password or "\n" in password:
        checker.refuse(key, "must hold the password on one line and nothing else")
    return Secret(password)
