"""A checkpoint: a directory of config.json, model.safetensors and catalog.json, with nothing pickled.

config.json is also what vLLM reads as the model's config. Its `files` hold the digest of each other file, and
its `version` is the digest of everything else in it: so the version names weights, catalog and config, and
damage to any of them is found.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from safetensors import SafetensorError, safe_open
from xxhash import xxh3_64, xxh3_128

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig, parse_config
from mtgr.errors import InputError
from mtgr.features import RowEncoder
from mtgr.learnt_part import LearntPart, parse_learnt_part
from mtgr.quantization.scheme import Quantization, parse_quantization
from mtgr.requests import MAX_SLATE, ModelInfo
from mtgr.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from mtgr.model.mtgr import MTGR

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
CATALOG_FILE: Final = "catalog.json"
MODEL_TYPE: Final = "mtgr"
ARCHITECTURE: Final = "MTGRForRecommendation"

_OWN_KEYS: Final = ("name", "version", "files", "model")
_QUANTIZATION_KEY: Final = "quantization_config"  # only a quantised one has it
_LEARNT_KEY: Final = "trained_on"  # only one that was trained on a log has it


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its config and catalog are read and checked, its weights are on disk."""

    directory: Path
    name: str
    version: str
    config: ModelConfig
    catalog: Catalog
    weights_digest: str
    quantization: Quantization | None = None
    learnt: LearntPart | None = None

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.directory / WEIGHTS_FILE

    @property
    def info(self) -> ModelInfo:
        """What a daemon must know of the model."""
        return ModelInfo(self.name, self.version, self.config.max_events, self.config.n_items)

    def verify(self) -> None:
        """Check the weights against their digest and the model's tensors; InputError says what is wrong."""
        import torch

        from mtgr.model.mtgr import MTGR

        with torch.device("meta"):
            expected = {name: list(tensor.shape) for name, tensor in MTGR(self.config).state_dict().items()}
        if self.quantization is not None:
            for name, parts in self.quantization.shapes(self.config).items():
                del expected[name]
                expected |= {part: list(shape) for part, shape in parts.items()}
        with _open_weights(self.weights, "numpy") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        for name in expected:
            if name not in found:
                raise InputError(f"{self.weights}: tensor {name!r} is missing")
        for name, shape in found.items():
            if name not in expected:
                raise InputError(f"{self.weights}: unexpected tensor {name!r}{did_you_mean(name, expected)}")
            if shape != expected[name]:
                raise InputError(
                    f"{self.weights}: tensor {name!r} is {shape}, where the config wants {expected[name]}"
                )
        _check_digest(self.weights, _file_digest(self.weights), self.weights_digest)

    def load_model(self) -> MTGR:
        """The model with its weights in float32, ready for inference; InputError as `verify` raises it.

        Quantised weights are what their codes stand for.
        """
        import torch

        from mtgr.model.mtgr import MTGR

        self.verify()
        with torch.device("meta"):
            model = MTGR(self.config)
        with _open_weights(self.weights, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if self.quantization is not None:
            from mtgr.quantization.codes import dequantise

            weights = dequantise(weights, self.quantization, self.config)
        weights = {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
        }
        model.load_state_dict(weights, assign=True)
        # not part of a checkpoint: only training asks for it
        model.embeddings.video.bucket_of = torch.arange(self.config.n_indices)
        return model.eval()


def open_checkpoint(directory: str | os.PathLike[str]) -> Checkpoint:
    """Read and check everything but the tensors' values, without importing torch.

    Raises InputError naming the file, what is wrong with it and what would be right.
    """
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root}: no such checkpoint directory; `mtgr-stream train --out {root}` makes one")
    for name in (CONFIG_FILE, WEIGHTS_FILE, CATALOG_FILE):
        if not (root / name).is_file():
            raise InputError(
                f"{root / name}: missing; a checkpoint is {CONFIG_FILE}, {WEIGHTS_FILE} and {CATALOG_FILE}"
            )
    path = root / CONFIG_FILE
    data = _read_config(path)
    config = parse_config(data["model"], f"{path}: model")
    for key, value in _engine_keys(config).items():
        if data[key] != value:
            raise InputError(f"{path}: {key} is {data[key]!r}, where the model section gives {value!r}")
    quantization = parse_quantization(data.get(_QUANTIZATION_KEY), str(path))
    learnt = parse_learnt_part(data.get(_LEARNT_KEY), f"{path}: {_LEARNT_KEY}")

    catalog_path = root / CATALOG_FILE
    catalog_json = _read(catalog_path)
    catalog = Catalog.from_json(catalog_json, config.unknown_buckets, config.spare_items, str(catalog_path))
    if len(catalog) != config.n_items:
        raise InputError(f"{catalog_path}: {len(catalog)} videos, where {path} has n_items {config.n_items}")
    _check_digest(catalog_path, xxh3_128(catalog_json).hexdigest(), data["files"][CATALOG_FILE])
    if (version := _version(data)) != data["version"]:
        raise InputError(
            f"{path}: version is {data['version']!r}, where the content gives {version!r}: it was edited"
        )
    RowEncoder(config, catalog)  # refuses features that no event has
    with _open_weights(root / WEIGHTS_FILE, "numpy"):
        pass  # refuses a truncated file
    return Checkpoint(
        root, data["name"], version, config, catalog, data["files"][WEIGHTS_FILE], quantization, learnt
    )


def save_checkpoint(
    directory: str | os.PathLike[str],
    name: str,
    config: ModelConfig,
    catalog: Catalog,
    state_dict: Mapping[str, Tensor],
    quantization: Quantization | None = None,
    learnt: LearntPart | None = None,
) -> Checkpoint:
    """Write a checkpoint whole and then put it in place, so that no reader ever meets a part of one.

    quantization: of the tensors, which are then as `Quantization.shapes` says. learnt: what the model was trained
    on. An earlier checkpoint there is replaced. Raises InputError if `directory` holds anything else, or cannot be
    written.
    """
    from safetensors.torch import save_file

    target = Path(directory).resolve()
    check_target(target)
    RowEncoder(config, catalog)
    work = target.parent / f".{target.name}.{os.getpid()}"
    try:
        work.mkdir(parents=True)
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items()}
        save_file(tensors, work / WEIGHTS_FILE, metadata={"format": "pt"})
        (work / CATALOG_FILE).write_bytes(catalog.to_json())
        # safetensors lets the owner alone read what it writes; a daemon runs as another user
        (work / WEIGHTS_FILE).chmod(stat.S_IMODE((work / CATALOG_FILE).stat().st_mode))
        data: dict[str, Any] = {
            "name": name,
            "files": {file: _file_digest(work / file) for file in (WEIGHTS_FILE, CATALOG_FILE)},
            "model": config.to_dict(),
            **_engine_keys(config),
        }
        if quantization is not None:
            data[_QUANTIZATION_KEY] = quantization.to_config()
        if learnt is not None:
            data[_LEARNT_KEY] = learnt.to_dict()
        data["version"] = _version(data)
        (work / CONFIG_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(data)) + b"\n")
        for path in work.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _put_in_place(work, target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target}: the checkpoint cannot be written: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return open_checkpoint(target)


def check_target(target: Path) -> None:
    """InputError if no checkpoint can be put there, so that it is told before the work and not after it.

    There may be nothing yet, an empty directory, or an earlier checkpoint; anything else is kept.
    """
    parent = target.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise InputError(f"{target}: cannot be written, since {parent} is no writable directory")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target}: is a file, where a checkpoint directory is wanted")
    if target.resolve().is_mount():
        raise InputError(f"{target}: is a mount point, which cannot be replaced; name a directory in it")
    others = {path.name for path in target.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE, CATALOG_FILE}
    if others:
        raise InputError(
            f"{target}: holds {min(others)!r}, which is no part of a checkpoint; "
            "name an empty or a new directory"
        )


def _put_in_place(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    # a directory cannot be renamed over a full one: the old one steps aside first
    aside = work.with_name(f"{work.name}.replaced")
    target.rename(aside)
    try:
        work.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside)


def _engine_keys(config: ModelConfig) -> dict[str, Any]:
    """What vLLM reads of a model's config, all of it following from ours."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "dtype": "float32",
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.d_qk,
        "vocab_size": config.vocab_size,
        # the engine counts the videos it samples as well
        "max_position_embeddings": config.max_length + MAX_SLATE,
        "projection_dim": config.row_width,
        "word_embed_proj_dim": config.row_width,
        "tie_word_embeddings": False,
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(_read(path), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON object: {error}") from None
    if data.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise InputError(f"{path}: model_type is {data['model_type']!r}, where {MODEL_TYPE!r} is wanted")
    known = (*_OWN_KEYS, *_engine_keys(_ANY_CONFIG))
    for key in data:
        if key not in (*known, _QUANTIZATION_KEY, _LEARNT_KEY):
            raise InputError(f"{path}: unknown key {key!r}{did_you_mean(key, known)}")
    for key in known:
        if key not in data:
            raise InputError(f"{path}: key {key!r} is missing")
    for key in ("name", "version"):
        if not isinstance(data[key], str):
            raise InputError(f"{path}: {key} is {data[key]!r}, where a string is wanted")
    files = data["files"]
    if not isinstance(files, dict) or set(files) != {WEIGHTS_FILE, CATALOG_FILE}:
        raise InputError(
            f"{path}: files is {files!r}, where digests of {WEIGHTS_FILE} and {CATALOG_FILE} are wanted"
        )
    if not isinstance(data["model"], dict):
        raise InputError(f"{path}: model is {data['model']!r}, where an object is wanted")
    return data


# only its keys are asked for
_ANY_CONFIG: Final = ModelConfig(d_model=8, n_layers=1, n_heads=1, d_qk=8, d_v=8, max_events=16, n_items=1)


def _version(data: Mapping[str, Any]) -> str:
    content = {key: value for key, value in data.items() if key != "version"}
    return xxh3_64(msgspec.json.encode(content, order="deterministic")).hexdigest()


def _check_digest(path: Path, digest: str, expected: object) -> None:
    if digest != expected:
        raise InputError(
            f"{path}: digest is {digest}, where {CONFIG_FILE} says {expected}: "
            "the file is damaged or of another checkpoint"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _file_digest(path: Path) -> str:
    digest = xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _open_weights(path: Path, framework: str) -> Any:
    try:
        path.open("rb").close()  # safetensors says of every file it cannot open that it is not there
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
