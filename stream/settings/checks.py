"""Checks that no single type can make: formats, and settings that must agree with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from msgspec import structs

from mtgr.errors import InputError
from mtgr.requests import MAX_SLATE
from stream.settings.groups import KafkaSettings, Settings
from stream.settings.secret import Secret

_MAX_SECRET_BYTES = 65_536


class _Checker:
    """Settings with where each came from, for messages that lead the user to the line to change."""

    def __init__(self, settings: Settings, sources: Mapping[str, str]) -> None:
        self._settings = settings
        self._sources = sources

    def value(self, key: str) -> Any:
        group, field = key.split(".")
        return getattr(getattr(self._settings, group), field)

    def shown(self, key: str) -> str:
        value = self.value(key)
        text = "unset" if value is None else str(value)
        return f"{key} = {text} ({self._sources.get(key, 'default')})"

    def refuse(self, key: str, right: str) -> NoReturn:
        raise InputError(f"{self.shown(key)}: {right}")

    def at_most(self, key: str, other: str, unit: int = 1, other_unit: int = 1) -> None:
        if self.value(key) * unit > self.value(other) * other_unit:
            self.refuse(key, f"must not be above {self.shown(other)}")


def check(settings: Settings, sources: Mapping[str, str]) -> Settings:
    """The settings, with the password read from its file; `sources` says where a `group.key` was set.

    Raises InputError where settings contradict each other.
    """
    checker = _Checker(settings, sources)
    _check_servers(checker)
    kafka = _check_security(checker, settings.kafka)
    _check_topics(checker, settings)
    _check_generator(checker)
    checker.at_most("trigger.quiet_period_ms", "trigger.max_wait_ms")
    checker.at_most("kafka.session_timeout_ms", "kafka.rebalance_timeout_ms")
    # a daemon that still drains when the rebalance ends has lost its partitions, and the work with them
    checker.at_most("stream.drain_deadline_seconds", "kafka.rebalance_timeout_ms", 1_000)
    checker.at_most("stream.max_event_bytes", "stream.max_in_flight_mebibytes", 1, 1 << 20)
    return structs.replace(settings, kafka=kafka)


def _check_servers(checker: _Checker) -> None:
    for server in checker.value("kafka.bootstrap_servers").split(","):
        host, colon, port = server.strip().rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            checker.refuse("kafka.bootstrap_servers", f"{server.strip()!r} is not host:port")


def _check_security(checker: _Checker, kafka: KafkaSettings) -> KafkaSettings:
    protocol = kafka.security_protocol
    passwords = [key for key in ("sasl_password", "sasl_password_file") if getattr(kafka, key) is not None]
    if protocol.startswith("SASL"):
        for key in ("sasl_mechanism", "sasl_username"):
            if getattr(kafka, key) is None:
                checker.refuse(f"kafka.{key}", f"required by {checker.shown('kafka.security_protocol')}")
        if not passwords:
            checker.refuse(
                "kafka.sasl_password",
                f"this or kafka.sasl_password_file is required by {checker.shown('kafka.security_protocol')}",
            )
        if len(passwords) == 2:
            checker.refuse("kafka.sasl_password", f"contradicts {checker.shown('kafka.sasl_password_file')}")
    else:
        for key in ("sasl_mechanism", "sasl_username", *passwords):
            if getattr(kafka, key) is not None:
                right = "is used by SASL_PLAINTEXT and SASL_SSL only, not with"
                checker.refuse(f"kafka.{key}", f"{right} {checker.shown('kafka.security_protocol')}")
    if kafka.ssl_cafile is not None:
        if "SSL" not in protocol:
            right = f"is used by SSL and SASL_SSL only, not with {checker.shown('kafka.security_protocol')}"
            checker.refuse("kafka.ssl_cafile", right)
        if not kafka.ssl_cafile.is_file():
            checker.refuse("kafka.ssl_cafile", "no such file")
    if kafka.sasl_password_file is not None:
        return structs.replace(kafka, sasl_password=_read_password(checker, kafka))
    return kafka


def _read_password(checker: _Checker, kafka: KafkaSettings) -> Secret:
    assert kafka.sasl_password_file is not None
    try:
        with kafka.sasl_password_file.open("rb") as file:
            password = file.read(_MAX_SECRET_BYTES).decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        checker.refuse("kafka.sasl_password_file", f"cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        checker.refuse("kafka.sasl_password_file", "is not UTF-8 text")
    if not password or "\n" in password:
        checker.refuse("kafka.sasl_password_file", "must hold the password on one line and nothing else")
    return Secret(password)


def _check_topics(checker: _Checker, settings: Settings) -> None:
    topics = settings.topics
    named = {
        "topics.events": topics.events,
        "topics.lists": topics.lists,
        "topics.dead_letters": topics.dead_letters,
        "topics.changelog": settings.changelog_topic,
    }
    if topics.videos is not None:
        named["topics.videos"] = topics.videos
    seen: dict[str, str] = {}
    for key, name in named.items():
        if topics.changelog is None and key == "topics.changelog" and not _is_topic(name):
            right = f"{name!r}, made of {checker.shown('kafka.group_id')}, is no valid topic name: set one"
            checker.refuse(key, right)
        if name in {".", ".."}:
            checker.refuse(key, "Kafka takes no topic of this name")
        # Kafka's metrics make no difference between '.' and '_', so it refuses two such names
        other = seen.setdefault(name.replace(".", "_"), key)
        if other != key:
            checker.refuse(
                key, f"{name!r} must differ from {checker.shown(other)}, and by more than '.' and '_'"
            )


def _is_topic(name: str) -> bool:
    return len(name) <= 249 and all(
        character.isascii() and (character.isalnum() or character in "._-") for character in name
    )


def _check_generator(checker: _Checker) -> None:
    if checker.value("generator.strategy") == "slate" and checker.value("generator.list_length") > MAX_SLATE:
        right = f"must not be above {MAX_SLATE} with {checker.shown('generator.strategy')}"
        checker.refuse("generator.list_length", right)
    kind, url = checker.value("generator.kind"), checker.value("generator.url")
    if kind == "server":
        if url is None:
            checker.refuse("generator.url", f"required by {checker.shown('generator.kind')}")
        if "@" in url:
            raise InputError("generator.url: must hold no user name or password")
        try:
            parts = urlsplit(url)
            valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            checker.refuse("generator.url", "expected http://host:port")
    elif url is not None:
        checker.refuse(
            "generator.url", f"is used by the server only, not with {checker.shown('generator.kind')}"
        )
