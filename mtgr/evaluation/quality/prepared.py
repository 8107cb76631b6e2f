"""A data set as it was read, in one file: reading it again takes a moment, and needs none of the readers."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np

from mtgr.config import parse_config
from mtgr.errors import InputError
from mtgr.evaluation.quality.data_sets import DataSet, Loaded, load
from mtgr.history import RECORD_DTYPE, History
from mtgr.training.log import EventLog


def prepare(chosen: DataSet, data: Path, directory: Path, *, fresh: bool = False) -> Path:
    """Read a data set and keep it in the directory, where it is not kept there already; the file's path."""
    path = directory / f"{chosen.name}.npz"
    if path.exists() and not fresh:
        return path
    loaded = load(chosen, data)
    histories = loaded.log.histories
    facts = {
        "users": list(histories),
        "videos": loaded.videos,
        "profiles": loaded.users,
        "config": loaded.config.to_dict(),
    }
    records = np.concatenate([history.records for history in histories.values()])
    records["event_digest"] = 0  # duplicates are out already
    ids = "\n".join(video for history in histories.values() for video in history.video_ids)
    directory.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(
        part,
        records=records.view(np.uint8).reshape(-1, RECORD_DTYPE.itemsize),
        counts=np.array([len(history) for history in histories.values()], np.int64),
        ids=np.frombuffer(ids.encode(), np.uint8),
        facts=np.frombuffer(msgspec.json.encode(facts), np.uint8),
    )
    part.replace(path)
    return path


def read_prepared(path: Path) -> Loaded:
    """Read what `prepare` wrote; InputError names a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            facts = msgspec.json.decode(held["facts"].tobytes())
            records = held["records"].reshape(-1).view(RECORD_DTYPE)
            ids = held["ids"].tobytes().decode().split("\n")
            ends = np.cumsum(held["counts"])
    except (OSError, ValueError, KeyError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: not a prepared data set: {error}") from None
    histories = {}
    begin = 0
    for user, end in zip(facts["users"], ends.tolist(), strict=True):
        histories[user] = History(records[begin:end], ids[begin:end])
        begin = end
    return Loaded(
        EventLog(histories), facts["videos"], facts["profiles"], parse_config(facts["config"], str(path))
    )
