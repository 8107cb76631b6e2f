"""What a training is made of, by its command line: events, split, config and attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from mtgr.config import ModelConfig, parse_config
from mtgr.datasets import SkippedRecords, parse_mapping, read_events
from mtgr.evaluation.protocol import LeaveOneOut, Protocol, TimeSplit
from mtgr.evaluation.targets import Target
from mtgr.learnt_part import LearntPart
from mtgr.training.attributes import fit_categories, fit_numbers
from mtgr.training.log import EventLog
from mtgr.training.options import TrainingOptions
from schemas.attributes import Attributes
from schemas.events import Event
from stream.settings import load_settings
from stream.tools.topic_log import read_topic

_LATEST: Final = 1 << 62


def protocol_of(
    split: str, cut: int | None, validation_days: float | None, target: Target, *, include_seen: bool
) -> Protocol | None:
    """The split by its name, None for none; a usage error where options do not go together."""
    if split == "time":
        if cut is None:
            raise click.UsageError("--split time needs --cut TIME, such as 2022-05-06T00:00+08:00")
        return TimeSplit(
            cut_ms=cut, target=target, exclude_seen=not include_seen, validation_days=validation_days or 1.0
        )
    if cut is not None or validation_days is not None:
        raise click.UsageError("--cut and --validation-days go with --split time")
    if split == "none":
        if include_seen:
            raise click.UsageError("--include-seen goes with a split: it says what is predicted")
        return None
    return LeaveOneOut(target=target, exclude_seen=not include_seen)


def learnt_part(
    protocol: Protocol | None, options: TrainingOptions, log: EventLog, *, include_seen: bool
) -> LearntPart:
    """What the checkpoint keeps of how its log was split, for whoever tests it."""
    return LearntPart(
        split="none" if protocol is None else "time" if isinstance(protocol, TimeSplit) else "leave-one-out",
        cut_ms=protocol.cut_ms if isinstance(protocol, TimeSplit) else None,
        target=options.target,
        include_seen=include_seen,
        part=options.part,
        last_ms=max(
            (int(one.records["timestamp_ms"].max()) for one in log.histories.values() if len(one)), default=0
        ),
    )


def with_changes(config: ModelConfig, changes: dict[str, Any], spare_items: int | None) -> ModelConfig:
    """A preset with fields changed by --set; InputError names the field and what would be right."""
    if spare_items is not None:
        changes = {**changes, "spare_items": spare_items}
    return parse_config({**config.to_dict(), **changes}, "--set")


def with_video_attributes(
    config: ModelConfig,
    described: Mapping[str, Attributes],
    categories: Sequence[str],
    numbers: Sequence[str],
    file: Path | None,
) -> ModelConfig:
    """The config with these attributes of videos, if any are named, sized by what the file holds of them."""
    if not categories and not numbers:
        return config
    if file is None:
        raise click.UsageError("--video-categories and --video-numbers need --videos FILE")
    return config.replace(
        video_categories=fit_categories(categories, described, str(file)),
        video_numbers=fit_numbers(numbers, described, str(file)),
    )


def with_user_attributes(
    config: ModelConfig,
    log: EventLog,
    known: Mapping[str, Attributes],
    categories: Sequence[str],
    numbers: Sequence[str],
    file: Path | None,
) -> ModelConfig:
    """The same with attributes of users, out of a file and the profiles of the log."""
    if not categories and not numbers:
        return config
    described: dict[str, Mapping[str, Any]] = {**known}
    described |= {user: last for user in log.histories if (last := log.profiles.at(user, _LATEST))}
    source = "the profiles of the events" if file is None else str(file)
    return config.replace(
        user_categories=fit_categories(categories, described, source),
        user_numbers=fit_numbers(numbers, described, source),
    )


def events_of(
    files: list[Path],
    topic: str | None,
    bootstrap_servers: str | None,
    settings_file: Path | None,
    mapping: tuple[str, ...],
    skipped: SkippedRecords | None,
) -> Iterator[Event]:
    """The events of files, or of a topic with the broker's settings as the daemon has them."""
    if topic is None:
        if bootstrap_servers is not None or settings_file is not None:
            raise click.UsageError("--bootstrap-servers and --config go with --topic")
        return read_events(files, parse_mapping(mapping) if mapping else None, skipped)
    if mapping:
        raise click.UsageError("--mapping is for tables; a topic holds events")
    overrides = [f"kafka.bootstrap_servers={bootstrap_servers}"] if bootstrap_servers else []
    return read_topic(load_settings(settings_file, os.environ, overrides).kafka, topic, skipped)
