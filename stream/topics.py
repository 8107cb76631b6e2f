"""The topics: what they should be, what they are, and creating those that are missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code
from msgspec import Struct
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception, retry_if_result, stop_after_delay, wait_fixed

from mtgr.errors import InputError
from schemas.attributes import MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTE_VALUES, MAX_ATTRIBUTES
from schemas.bounds import MAX_ID_CHARACTERS
from stream.kafka import KafkaUnreachable, client_options, connected, is_connection_error
from stream.outgoing import BATCH_BYTES
from stream.permissions import daemon_permissions, require_permissions
from stream.refusals import user_of
from stream.settings import KafkaSettings, Settings

Role = Literal["events", "lists", "dead_letters", "changelog", "videos"]
T = TypeVar("T")
Outcome = Literal["ready", "created", "missing", "wrong"]

_DAY_MS: Final = 86_400_000
_SHOWN_CONFIGS: Final = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes")
_DURABLE_REPLICATION: Final = 3
# Kafka refuses records whose time is more than an hour ahead: a daemon's clock may be wrong, so it is not asked.
_BROKERS_CLOCK: Final = {"message.timestamp.type": "LogAppendTime"}
_VIDEO_BYTES: Final = 80  # of a recommended video beside its id
_RECORD_BYTES: Final = 8_192  # of a record beside what it is mostly made of: ids, times, headers
_LONGEST_PROFILE: Final = MAX_ATTRIBUTES * 4 * (64 + MAX_ATTRIBUTE_VALUES * (MAX_ATTRIBUTE_CHARACTERS + 2))
_POLL_SECONDS: Final = 0.1


class Topic(Struct, frozen=True, kw_only=True):
    """What one topic should be. `configs` are given to Kafka when the topic is created.

    batch_bytes: the longest batch of records that the daemon may write to it, 0 where it writes none.
    """

    role: Role
    name: str
    partitions: int
    replication_factor: int
    configs: dict[str, str]
    batch_bytes: int = 0


class TopicReport(Struct, frozen=True, kw_only=True):
    """What one topic is: its shape and settings in Kafka, and what is wrong with them, one line each.

    partitions and replication_factor are 0, and configs empty, where the topic is missing.
    """

    topic: Topic
    outcome: Outcome
    partitions: int = 0
    replication_factor: int = 0
    configs: dict[str, str] = {}
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Found(Struct, frozen=True):
    partitions: int
    replication_factor: int


def wanted_topics(settings: Settings) -> list[Topic]:
    """The topics of a daemon with these settings; the changelog has the events' partitions, one to one.

    That of the videos is among them only where it is named.
    """
    topics = settings.topics
    durable = {}
    if topics.replication_factor >= _DURABLE_REPLICATION:
        durable = {"min.insync.replicas": str(topics.replication_factor // 2 + 1)}
    # a dead letter is the record that died and its headers beside it: longer than the longest event
    dead = {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS), "max.message.bytes": str(2 << 20)}
    # Small segments, because only closed ones are compacted, and a restore reads what is not compacted.
    changelog = {
        "cleanup.policy": "compact",
        **_BROKERS_CLOCK,
        "segment.bytes": str(64 << 20),
        "segment.ms": str(_DAY_MS),
        "min.cleanable.dirty.ratio": "0.2",
        # what was forgotten is gone from the log, whatever else is written to it, two days later
        "max.compaction.lag.ms": str(_DAY_MS),
        "delete.retention.ms": str(_DAY_MS),
    }
    by_role: dict[Role, tuple[str, dict[str, str]]] = {
        "events": (topics.events, {"cleanup.policy": "delete"}),
        "lists": (topics.lists, {"cleanup.policy": "delete", **_BROKERS_CLOCK}),
        "dead_letters": (topics.dead_letters, dead),
        "changelog": (settings.changelog_topic, changelog),
    }
    if topics.videos is not None:
        by_role["videos"] = (topics.videos, {"cleanup.policy": "compact"})
    return [
        Topic(
            role=role,
            name=name,
            partitions=topics.partitions,
            replication_factor=topics.replication_factor,
            configs=configs | durable,
            batch_bytes=_batch_bytes(role, settings),
        )
        for role, (name, configs) in by_role.items()
    ]


def _batch_bytes(role: Role, settings: Settings) -> int:
    match role:
        case "lists":  # six bytes for a character that JSON escapes
            a_video = 6 * MAX_ID_CHARACTERS + _VIDEO_BYTES
            return max(BATCH_BYTES, settings.generator.list_length * a_video + _RECORD_BYTES)
        case "changelog":
            profile = min(settings.stream.max_event_bytes, _LONGEST_PROFILE)
            return max(BATCH_BYTES, profile + _RECORD_BYTES)
        case "dead_letters":  # a longer record is cut down to what the topic takes
            return BATCH_BYTES
        case _:
            return 0


async def ensure_topics(settings: Settings) -> list[TopicReport]:
    """Create the topics that are missing and return what there is then.

    Raises InputError naming each thing that is wrong with a topic, or that Kafka does not allow this daemon;
    KafkaUnreachable where no broker answers.
    """
    await _require_permissions(settings)
    reports = await review_topics(settings, create=True)
    if any(report.outcome == "created" for report in reports):
        await _require_permissions(settings)  # of a topic that was not there nothing could be told
    problems = [problem for report in reports for problem in report.problems]
    if problems:
        raise InputError("; ".join(problems))
    return reports


async def review_topics(settings: Settings, *, create: bool) -> list[TopicReport]:
    """Compare the topics in Kafka with `wanted_topics`, having created those that are missing if `create`.

    Raises InputError where Kafka refuses to create a topic, KafkaUnreachable where no broker answers.
    """
    wanted = wanted_topics(settings)
    async with connected(_Admin(**client_options(settings.kafka)), settings.kafka) as admin:
        reports = await _ask(settings.kafka, _review, admin, wanted)
        missing = [report.topic for report in reports if report.outcome == "missing"]
        # none beside a wrong one: the partitions of the events topic, once set right, are the changelog's too
        if not create or not missing or any(report.outcome == "wrong" for report in reports):
            return reports
        created = await _ask(settings.kafka, _create, admin, missing)
        # a broker may take a moment to hear of what the controller created
        settled = AsyncRetrying(
            retry=retry_if_result(_has_missing),
            wait=wait_fixed(_POLL_SECONDS),
            stop=stop_after_delay(settings.kafka.connect_timeout_seconds),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else [],
        )
        reports = await settled(_ask, settings.kafka, _review, admin, wanted)
    return [
        replace(report, outcome="created")
        if report.topic.name in created and report.outcome == "ready"
        else report
        for report in reports
    ]


async def _require_permissions(settings: Settings) -> None:
    kafka = settings.kafka
    async with connected(_Admin(**client_options(kafka)), kafka) as admin:
        await _ask(kafka, require_permissions, admin, kafka, daemon_permissions(settings))


async def _ask(kafka: KafkaSettings, question: Callable[..., Awaitable[T]], *about: Any) -> T:
    """What Kafka answers, asked again for a while; raises KafkaUnreachable after that.

    An admin client asks whichever broker it comes upon, which may just be away, and the first group of a cluster finds
    that its coordinator is still to be made.
    """
    patiently = AsyncRetrying(
        retry=retry_if_exception(is_connection_error),
        wait=wait_fixed(_POLL_SECONDS),
        stop=stop_after_delay(kafka.connect_timeout_seconds),
        reraise=True,
    )
    try:
        return await patiently(question, *about)
    except (KafkaError, OSError) as error:
        if not is_connection_error(error):
            raise
        raise KafkaUnreachable(
            f"kafka.bootstrap_servers = {kafka.bootstrap_servers}: Kafka gave no answer for "
            f"{kafka.connect_timeout_seconds:g} seconds: {str(error) or type(error).__name__}"
        ) from error


async def partition_count(kafka: KafkaSettings, name: str) -> int:
    """How many partitions a topic has; raises InputError where there is no such topic, and never creates one."""
    async with connected(_Admin(**client_options(kafka)), kafka) as admin:
        found = await _ask(kafka, _describe, admin)
    if name not in found:
        raise InputError(
            f"there is no topic {name} that {user_of(kafka)} may see: create it by mtgr-stream topics, or grant what "
            "docs/security.md lists"
        )
    return found[name].partitions


async def committed_offsets(kafka: KafkaSettings, group: str) -> dict[TopicPartition, tuple[int, str]]:
    """The offset and the metadata that a consumer group has committed for each partition.

    Raises KafkaUnreachable where no broker answers, KafkaError where the group cannot be read.
    """
    async with connected(_Admin(**client_options(kafka)), kafka) as admin:
        found: dict[TopicPartition, Any] = await _ask(kafka, admin.list_consumer_group_offsets, group)
    return {tp: (commit.offset, commit.metadata) for tp, commit in found.items()}


async def group_members(kafka: KafkaSettings, group: str) -> int:
    """How many consumers are in a group now; raises KafkaUnreachable where no broker answers."""
    async with connected(_Admin(**client_options(kafka)), kafka) as admin:
        answers: list[Any] = await _ask(kafka, admin.describe_consumer_groups, [group])
    return sum(len(described[5]) for answer in answers for described in answer.groups)


class _Admin(AIOKafkaAdminClient):  # type: ignore[misc]
    """An admin client that is stopped as the other clients are."""

    async def stop(self) -> None:
        await self.close()


def _has_missing(reports: Sequence[TopicReport]) -> bool:
    return any(report.outcome == "missing" for report in reports)


async def _review(admin: AIOKafkaAdminClient, wanted: Sequence[Topic]) -> list[TopicReport]:
    found = await _describe(admin)
    configs = await _configs(admin, [topic.name for topic in wanted if topic.name in found])
    return [_report(topic, found.get(topic.name), configs.get(topic.name, {})) for topic in wanted]


async def _describe(admin: AIOKafkaAdminClient) -> dict[str, _Found]:
    # of all topics, because asking for one by name may create it
    return {
        entry["topic"]: _Found(
            len(entry["partitions"]),
            min(len(partition["replicas"]) for partition in entry["partitions"]),
        )
        for entry in await admin.describe_topics()
        # one that has just been created is there only once it can be used
        if entry["partitions"] and all(partition["leader"] >= 0 for partition in entry["partitions"])
    }


async def _create(admin: AIOKafkaAdminClient, topics: Sequence[Topic]) -> set[str]:
    new = [
        NewTopic(topic.name, topic.partitions, topic.replication_factor, topic_configs=topic.configs)
        for topic in topics
    ]
    response = await admin.create_topics(new)
    created = set()
    for name, code, *message in response.topic_errors:
        error = for_code(code)
        if code == 0:
            created.add(name)
        elif error is TopicAuthorizationFailedError:
            raise InputError(
                f"topic {name} is missing, and Kafka does not allow this client to create it: create it, or grant "
                f"Create on topic {name} (docs/security.md has the list)"
            )
        elif error is not TopicAlreadyExistsError:  # another daemon was faster
            reason = (message[0] if message else None) or error.description
            raise InputError(f"topic {name}: Kafka refuses to create it: {reason} ({error.__name__})")
    return created


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    wanted = dict.fromkeys(_SHOWN_CONFIGS, "")
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names]
    configs: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(resources):
        for code, message, _, name, entries in response.resources:
            if code:
                error = for_code(code)
                if error.retriable:  # one broker may know of a topic that another has not heard of yet
                    raise error(message or error.description)
                raise InputError(f"topic {name}: its settings cannot be read: {message or error.description}")
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


def _report(topic: Topic, found: _Found | None, configs: Mapping[str, str]) -> TopicReport:
    if found is None:
        noun = topic.role.replace("_", " ")
        problem = f"topic {topic.name} ({noun}) is missing: create it by mtgr-stream topics"
        return TopicReport(topic=topic, outcome="missing", problems=(problem,))
    problems = [
        *_partition_problems(topic, found),
        *_cleanup_problems(topic, configs["cleanup.policy"]),
        *_size_problems(topic, int(configs["max.message.bytes"])),
    ]
    notes = []
    if found.replication_factor < topic.replication_factor:
        notes.append(
            f"topic {topic.name} has replication factor {found.replication_factor} where "
            f"topics.replication_factor is {topic.replication_factor}"
        )
    return TopicReport(
        topic=topic,
        outcome="wrong" if problems else "ready",
        partitions=found.partitions,
        replication_factor=found.replication_factor,
        configs=dict(configs),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _partition_problems(topic: Topic, found: _Found) -> list[str]:
    # the others may have any number: nothing else is counted by theirs
    if topic.role not in ("events", "changelog") or found.partitions == topic.partitions:
        return []
    has = (
        f"topic {topic.name} has {found.partitions} partitions where topics.partitions is {topic.partitions}"
    )
    if topic.role == "events":
        return [f"{has}: set topics.partitions = {found.partitions}, or name another topics.events"]
    return [
        f"{has}, and a changelog must have those of the events topic: name another topics.changelog, or "
        f"delete this one and what state was kept in it"
    ]


def _size_problems(topic: Topic, most: int) -> list[str]:
    if most >= topic.batch_bytes:
        return []
    return [
        f"topic {topic.name} has max.message.bytes = {most} where the daemon may write {topic.batch_bytes} bytes at "
        f"once: set it to {topic.batch_bytes} or more"
    ]


def _cleanup_problems(topic: Topic, policy: str) -> list[str]:
    policies = {part.strip() for part in policy.split(",")}
    has = f"topic {topic.name} has cleanup.policy = {policy}"
    match topic.role:
        case "changelog" if policies != {"compact"}:
            return [f"{has} where a changelog must have compact, or the state of silent users is lost"]
        case "videos" if policies != {"compact"}:
            return [
                f"{has} where videos must have compact, or a daemon that starts later knows fewer of them"
            ]
        case "events" | "dead_letters" if "compact" in policies:
            noun = "events" if topic.role == "events" else "dead letters"
            return [f"{has} where {noun} must have delete: compaction keeps only the last of each user"]
        case _:
            return []
