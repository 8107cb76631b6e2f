"""A real broker behind TLS, SASL and an authorizer, with users who are allowed what a test grants them."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from stream.demo.broker import free_port
from stream.demo.maven_broker import MavenBroker, find_java, kafka_jars

PASSWORD = "Pl4nted-Secret-password"
KEY_PASSWORD = "Pl4nted-Secret-key-password"
TOKEN_SUBJECT = "token-user"
PLAIN_USERS = ("owner", *(f"lacking-{number}" for number in range(16)))
TOOL_USERS = ("producer", "reader", "repairer", "keeper", "mover", "eraser", "stranger")
SCRAM_USER = "scram-user"

_LOGIN: Final = "org.apache.kafka.common.security"
_RESOURCES: Final = {"topic": 2, "group": 3, "transactional id": 5}
_OPERATIONS: Final = {"Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Describe": 8, "DescribeConfigs": 10}


@dataclass(frozen=True)
class Authority:
    """A certificate authority made by openssl for one test run, and what it signed."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self.directory / "ca.pem"

    @classmethod
    def make(cls, directory: Path, name: str) -> Authority:
        """A fresh authority of this name."""
        directory.mkdir(parents=True, exist_ok=True)
        authority = cls(directory)
        subject = f"/CN={name}"
        authority._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", subject, "-keyout", "ca.key", "-out", "ca.pem"),
        )
        return authority

    def sign(self, name: str, host: str | None = None, password: str | None = None) -> tuple[Path, Path]:
        """A certificate, with its chain, and its key, both PEM; the key is encrypted where there is a password."""
        encrypt = ["-aes-256-cbc", "-pass", f"pass:{password}"] if password else []
        self._openssl(
            *("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", *encrypt),
            *("-out", f"{name}.key"),
        )
        unlock = ["-passin", f"pass:{password}"] if password else []
        self._openssl(
            "req", "-new", "-key", f"{name}.key", *unlock, "-subj", f"/CN={name}", "-out", f"{name}.csr"
        )
        extension = self.directory / f"{name}.ext"
        extension.write_text(f"subjectAltName={host}\n" if host else "basicConstraints=CA:FALSE\n")
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", extension.name, "-out", f"{name}.pem"),
        )
        certificate = self.directory / f"{name}.pem"
        certificate.write_text(certificate.read_text() + self.certificate.read_text())
        return certificate, self.directory / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


class SecureBroker:
    """Listeners: open to the test (superuser), TLS with SASL, TLS with client certificates, and SASL without TLS."""

    def __init__(self, directory: Path, jars: Path, java: str) -> None:
        self.authority = Authority.make(directory / "authority", "the right authority")
        self.other_authority = Authority.make(directory / "other", "another authority")
        certificate, key = self.authority.sign("broker", "IP:127.0.0.1")
        keystore = directory / "broker.pem"
        keystore.write_text(key.read_text() + certificate.read_text())
        names = ("PLAINTEXT", "SECURE", "MUTUAL", "BARE", "CONTROLLER")
        self._ports = {name: free_port() for name in names}
        own = {name: f"{name}://127.0.0.1:{port}" for name, port in self._ports.items()}
        users = " ".join(f'user_{name}="{PASSWORD}"' for name in (*PLAIN_USERS, *TOOL_USERS))
        plain = f"{_LOGIN}.plain.PlainLoginModule required {users};"
        scram = f"{_LOGIN}.scram.ScramLoginModule required;"
        token = (
            f'{_LOGIN}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        )
        self._broker = MavenBroker(
            directory / "broker",
            jars,
            java,
            changes={
                "listeners": ",".join(own.values()),
                "advertised.listeners": ",".join(own[name] for name in names if name != "CONTROLLER"),
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL,"
                "BARE:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
                "controller.quorum.voters": f"1@127.0.0.1:{self._ports['CONTROLLER']}",
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(keystore),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.authority.certificate),
                "listener.name.mutual.ssl.client.auth": "required",
                "listener.name.mutual.ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
                "listener.name.secure.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
                "listener.name.secure.plain.sasl.jaas.config": plain,
                "listener.name.secure.scram-sha-256.sasl.jaas.config": scram,
                "listener.name.secure.scram-sha-512.sasl.jaas.config": scram,
                "listener.name.secure.oauthbearer.sasl.jaas.config": token,
                "listener.name.bare.sasl.enabled.mechanisms": "SCRAM-SHA-512",
                "listener.name.bare.scram-sha-512.sasl.jaas.config": scram,
            },
            format_options=[
                f"--add-scram={mechanism}=[name={SCRAM_USER},password={PASSWORD}]"
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            ],
        )

    @property
    def servers(self) -> str:
        """Where the test itself connects, as a superuser."""
        return f"127.0.0.1:{self._ports['PLAINTEXT']}"

    def kill(self) -> None:
        """The broker is gone."""
        self._broker.kill()

    def log(self) -> str:
        """What the broker has logged."""
        return self._broker.output()

    def settings(self, listener: str, host: str = "127.0.0.1", **changes: object) -> dict[str, object]:
        """Settings of a client of one listener that trusts the right authority; a change to None leaves one out."""
        protocol = {"SECURE": "SASL_SSL", "MUTUAL": "SSL", "BARE": "SASL_PLAINTEXT", "PLAINTEXT": "PLAINTEXT"}
        chosen: dict[str, object] = {
            "kafka.bootstrap_servers": f"{host}:{self._ports[listener]}",
            "kafka.security_protocol": protocol[listener],
        }
        if "SSL" in protocol[listener]:
            chosen["kafka.ssl_ca_location"] = str(self.authority.certificate)
        chosen |= {f"kafka.{key}": value for key, value in changes.items()}
        return {key: value for key, value in chosen.items() if value is not None}

    def plain(self, user: str, password: str = PASSWORD) -> dict[str, object]:
        """Settings of a user of SASL PLAIN over TLS."""
        return self.settings("SECURE", sasl_mechanism="PLAIN", sasl_username=user, sasl_password=password)

    async def grant(self, grants: Iterable[tuple[str, str, str, str]]) -> None:
        """Allow (user, kind of resource, its name, operation); each takes hold within moments.

        A name that ends in a slash is a prefix of names.
        """
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            creations = [
                (
                    _RESOURCES[resource],
                    name,
                    4 if name.endswith("/") else 3,
                    f"User:{user}",
                    "*",
                    _OPERATIONS[operation],
                    3,
                )
                for user, resource, name, operation in grants
            ]
            answer = await admin._send_request(_CreateAcls(creations))
            assert not [code for code, _ in answer.results if code]
        finally:
            await admin.close()


@contextmanager
def secure_broker(directory: Path) -> Iterator[SecureBroker]:
    """A broker that is gone at the end of the block; raises KafkaUnavailable where there is no Java."""
    broker = SecureBroker(directory, kafka_jars(Path(__file__).parents[2] / ".kafka"), find_java())
    try:
        yield broker
    finally:
        broker.kill()


def unsecured_token(subject: str = TOKEN_SUBJECT, seconds: float = 3600) -> str:
    """A token as Kafka's own unsecured validator takes it: a JWT without a signature."""
    now = time.time()
    claims = {"sub": subject, "iat": now - 7200, "exp": now + seconds}
    parts = ({"alg": "none"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join(encoded) + "."


class _CreateAclsResponse_v1(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 30
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32), ("results", Array(("error_code", Int16), ("error_message", String())))
    )


class _CreateAclsRequest_v1(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 30
    API_VERSION = 1
    RESPONSE_TYPE = _CreateAclsResponse_v1
    SCHEMA = Schema(
        (
            "creations",
            Array(
                ("resource_type", Int8),
                ("resource_name", String()),
                ("pattern_type", Int8),
                ("principal", String()),
                ("host", String()),
                ("operation", Int8),
                ("permission", Int8),
            ),
        )
    )


class _CreateAcls(Request[_CreateAclsRequest_v1]):  # type: ignore[misc]
    API_KEY = 30

    def __init__(self, creations: Sequence[tuple[int, str, int, str, str, int, int]]) -> None:
        self._creations = creations

    def build(self, request_struct_class: type[_CreateAclsRequest_v1]) -> _CreateAclsRequest_v1:
        return request_struct_class(self._creations)
