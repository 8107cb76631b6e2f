"""The public logs that quality is measured on: what is read, how it is split, and what others have published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mtgr.config import ModelConfig
from mtgr.datasets import parse_mapping, read_attributes, read_events
from mtgr.errors import InputError
from mtgr.evaluation.protocol import LeaveOneOut, Protocol, TimeSplit
from mtgr.presets import preset
from mtgr.suggestions import did_you_mean
from mtgr.training.attributes import fit_categories, fit_numbers
from mtgr.training.log import EventLog


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeFile:
    """A file of attributes: the column of ids, those that are categories, and those that are numbers.

    lists: columns that hold several texts, and what stands between them.
    """

    name: str
    id_column: str | None = None
    categories: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    lists: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One log and its protocol.

    files, videos and users lie in `folder` of the data directory; times: whether the log tells times, and not
    only an order; preset: the recipe that ours is trained by.
    published: system -> Recall@10 as its authors state it, for this split. aim: the Recall@10 that ours is to reach,
    besides being above every baseline; apart: whether its interval is to lie above theirs, too.
    """

    name: str
    title: str
    folder: str
    files: tuple[str, ...]
    mapping: tuple[str, ...] = ()
    times: bool = True
    videos: AttributeFile
    users: AttributeFile | None = None
    protocol: Protocol
    preset: str
    summary: str
    published: Mapping[str, float] = field(default_factory=dict)
    aim: float | None = None
    apart: bool = False


DATA_SETS: Final[Mapping[str, DataSet]] = {
    "beauty": DataSet(
        name="beauty",
        title="Amazon Beauty",
        folder="amazon-beauty",
        files=("Beauty.txt.gz",),
        mapping=("layout=sequences",),
        times=False,
        videos=AttributeFile(name="Beauty_item2attributes.json.gz", categories=("attributes",)),
        protocol=LeaveOneOut(),
        preset="amazon-beauty",
        summary=(
            "The 5-core log of S3-Rec, P5 and TIGER, leave-one-out: a user's last item is the test, the one before it "
            "the validation, and models learn what is before both. The whole catalog is ranked, without the items "
            "of the user's history, in which the validation item is. The published figures are for the same log "
            "and split."
        ),
        published={"SASRec": 0.0639, "TIGER": 0.0628, "LC-Rec": 0.0764, "OneRec": 0.0924},
        aim=0.08,
    ),
    "kuairand": DataSet(
        name="kuairand",
        title="KuaiRand-Pure",
        folder="kuairand-pure",
        files=("user_sequences_0409_0424.jsonl.gz", "kuairand_pure_std_0425_0508.csv.gz"),
        videos=AttributeFile(
            name="video_features_basic_pure.csv.gz",
            id_column="video_id",
            categories=("author_id", "upload_type", "upload_dt", "video_type", "music_type", "tag"),
            numbers=("video_duration",),
            lists={"tag": ","},
        ),
        users=AttributeFile(
            name="user_features_pure.csv.gz",
            id_column="user_id",
            categories=(
                "user_active_degree",
                "is_live_streamer",
                "is_video_author",
                "follow_user_num_range",
                "fans_user_num_range",
                "friend_user_num_range",
                "register_days_range",
                *(f"onehot_feat{number}" for number in range(18)),
            ),
        ),
        protocol=TimeSplit(cut_ms=1_651_766_400_000, target="long-view"),
        preset="kuairand-pure",
        summary=(
            "The earlier watch histories and then the timed log. Models learn what is before 2022-05-06 00:00 "
            "(UTC+8); the test is each user's first long view after that of a video that is not in the user's "
            "history, with the history as it was at that moment. The whole catalog is ranked, without the "
            "history's videos."
        ),
        apart=True,
    ),
}


def data_set(name: str) -> DataSet:
    """A data set by its name; InputError names the nearest one."""
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}{did_you_mean(name, DATA_SETS)}")
    return DATA_SETS[name]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A data set in memory, and the config of its recipe with the attributes sized by what is known of them."""

    log: EventLog
    videos: Mapping[str, Mapping[str, Any]]
    users: Mapping[str, Mapping[str, Any]]
    config: ModelConfig

    def __post_init__(self) -> None:
        for user, attributes in self.users.items():
            self.log.profiles.know(user, attributes)


def load(chosen: DataSet, data: Path) -> Loaded:
    """Read a data set from the data directory; InputError says what is missing."""
    folder = data / chosen.folder
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no such directory; DATA_DIR names the one with {chosen.folder} in it"
        )
    mapping = parse_mapping(chosen.mapping) if chosen.mapping else None
    log = EventLog.collect(read_events([folder / name for name in chosen.files], mapping))
    videos = _read(folder, chosen.videos)
    users = _read(folder, chosen.users) if chosen.users is not None else {}
    config = preset(chosen.preset).replace(
        video_categories=fit_categories(chosen.videos.categories, videos, chosen.videos.name),
        video_numbers=fit_numbers(chosen.videos.numbers, videos, chosen.videos.name),
        user_categories=(
            fit_categories(chosen.users.categories, users, chosen.users.name) if chosen.users else ()
        ),
    )
    return Loaded(log, videos, users, config)


def _read(folder: Path, file: AttributeFile) -> Mapping[str, Mapping[str, Any]]:
    columns = [*file.categories, *file.numbers]
    return read_attributes(folder / file.name, file.id_column, columns, lists=dict(file.lists))
