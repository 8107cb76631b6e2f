"""What the daemon must be allowed on the cluster, and asking the broker beforehand whether it is.

A broker with an authorizer refuses one request after another, and some of them late: the first list, the first dead
letter. So the daemon asks at the start what it may do (KIP-430) and names everything that is missing at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Bytes, Int16, Int32, Schema, String
from msgspec import Struct

from mtgr.errors import InputError
from stream.refusals import user_of
from stream.settings import KafkaSettings, Settings

Resource = Literal["topic", "group"]
Operation = Literal["Read", "Write", "Describe", "DescribeConfigs"]

# AclOperation's codes; a broker's answer has the bit of each operation that is allowed
_BITS: Final[dict[Operation, int]] = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}
_NOT_TOLD: Final = -(2**31)
_PAGE: Final = "docs/security.md"


class Permission(Struct, frozen=True, order=True):
    """One operation on one resource of the cluster."""

    resource: Resource
    name: str
    operation: Operation

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource} {self.name}"


def daemon_permissions(settings: Settings) -> list[Permission]:
    """The least that a daemon with these settings needs on topics and group; Read and Write include Describe."""
    topics = settings.topics
    operations: dict[str, tuple[Operation, ...]] = {
        topics.events: ("Read", "DescribeConfigs"),
        topics.lists: ("Write", "DescribeConfigs"),
        topics.dead_letters: ("Write", "DescribeConfigs"),
        settings.changelog_topic: ("Read", "Write", "DescribeConfigs"),
    }
    if topics.videos is not None:
        operations[topics.videos] = ("Read", "DescribeConfigs")
    needed = [
        Permission("topic", name, operation) for name, allowed in operations.items() for operation in allowed
    ]
    return [*needed, Permission("group", settings.kafka.group_id, "Read")]


async def require_permissions(
    admin: AIOKafkaAdminClient, kafka: KafkaSettings, needed: Iterable[Permission]
) -> None:
    """Return if this client has these permissions, or the broker is too old to tell; topics not there are passed over.

    `admin` is started. Raises InputError naming all that are missing.
    """
    wanted = list(needed)
    try:
        allowed = await _topic_operations(admin, [one.name for one in wanted if one.resource == "topic"])
        allowed |= await _group_operations(admin, [one.name for one in wanted if one.resource == "group"])
    except (IncompatibleBrokerVersion, NotImplementedError):
        return
    missing = [one for one in wanted if not _is_allowed(one, allowed.get((one.resource, one.name)))]
    if missing:
        raise InputError(denial(kafka, missing))


def denial(kafka: KafkaSettings, missing: Sequence[Permission]) -> str:
    """One line that names who lacks what."""
    return f"Kafka does not allow {user_of(kafka)}: {', '.join(map(str, missing))}; grant it ({_PAGE} has the list)"


def _is_allowed(permission: Permission, operations: int | None) -> bool:
    return operations in (None, _NOT_TOLD) or bool(operations & 1 << _BITS[permission.operation])


_Allowed = dict[tuple[Resource, str], int]


async def _topic_operations(admin: AIOKafkaAdminClient, names: Sequence[str]) -> _Allowed:
    unique = sorted(set(names))
    answer = await admin._send_request(_MetadataRequest(unique)) if unique else None
    allowed: _Allowed = {}
    for code, name, _, _, operations in answer.topics if answer else ():
        # a topic that may not even be described is refused as a whole
        allowed["topic", name] = 0 if code == TopicAuthorizationFailedError.errno else operations
    return allowed


async def _group_operations(admin: AIOKafkaAdminClient, names: Sequence[str]) -> _Allowed:
    allowed: _Allowed = {}
    for name in sorted(set(names)):
        try:
            coordinator = await admin.find_coordinator(name)
        except GroupAuthorizationFailedError:
            allowed["group", name] = 0
            continue
        answer = await admin._send_request(_DescribeGroupsRequest([name]), coordinator)
        for code, group, *_, operations in answer.groups:
            allowed["group", group] = 0 if code == GroupAuthorizationFailedError.errno else operations
    return allowed


# ---- the two requests, in the versions that tell of operations, which aiokafka does not have


class _MetadataResponse_v8(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String()), ("port", Int32), ("rack", String()))),
        ("cluster_id", String()),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String()),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataRequest_v8(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse_v8
    SCHEMA = Schema(
        ("topics", Array(String())),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _MetadataRequest(Request[_MetadataRequest_v8]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequest_v8]) -> _MetadataRequest_v8:
        return request_struct_class(self._topics, False, False, True)


class _DescribeGroupsResponse_v3(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 15
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            Array(
                ("error_code", Int16),
                ("group", String()),
                ("state", String()),
                ("protocol_type", String()),
                ("protocol", String()),
                (
                    "members",
                    Array(
                        ("member_id", String()),
                        ("client_id", String()),
                        ("client_host", String()),
                        ("member_metadata", Bytes),
                        ("member_assignment", Bytes),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    )


class _DescribeGroupsRequest_v3(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = _DescribeGroupsResponse_v3
    SCHEMA = Schema(("groups", Array(String())), ("include_authorized_operations", Boolean))


class _DescribeGroupsRequest(Request[_DescribeGroupsRequest_v3]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[_DescribeGroupsRequest_v3]) -> _DescribeGroupsRequest_v3:
        return request_struct_class(self._groups, True)
