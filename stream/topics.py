"""The topics in Kafka: reviewing what they are, creating those that are missing, and asking about them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception, retry_if_result, stop_after_delay, wait_fixed

from mtgr.errors import InputError
from stream.kafka import KafkaUnreachable, client_options, connected, is_connection_error
from stream.permissions import daemon_permissions, require_permissions
from stream.refusals import user_of
from stream.settings import KafkaSettings, Settings
from stream.topic_reports import FoundTopic, TopicReport, report_on
from stream.wanted_topics import Topic, wanted_topics

T = TypeVar("T")
_SHOWN_CONFIGS: Final = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes")
_POLL_SECONDS: Final = 0.1


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
    return [report_on(topic, found.get(topic.name), configs.get(topic.name, {})) for topic in wanted]


async def _describe(admin: AIOKafkaAdminClient) -> dict[str, FoundTopic]:
    # of all topics, because asking for one by name may create it
    return {
        entry["topic"]: FoundTopic(
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
