"""Promises of mtgr.checkpoint: what is saved is what is loaded, and damage is named, not served."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import tiny_checkpoint
from safetensors.torch import load_file, save_file

from mtgr import checkpoint as checkpoint_module
from mtgr.catalog import Catalog
from mtgr.checkpoint import Checkpoint, check_target, open_checkpoint, save_checkpoint
from mtgr.errors import InputError
from mtgr.learnt_part import LearntPart
from mtgr.model.jagged import Layout
from mtgr.model.mtgr import MTGR
from mtgr.presets import PRESETS

CONFIG = PRESETS["tiny"].replace(d_model=16, n_items=20, unknown_buckets=3)
CATALOG = Catalog([f"v{number}" for number in range(20)], 3)


def _save(directory: Path, seed: int = 0, **changes: Any) -> tuple[Checkpoint, MTGR]:
    config = CONFIG.replace(**changes)
    torch.manual_seed(seed)
    model = MTGR(config)
    return save_checkpoint(directory, "test", config, CATALOG, model.state_dict()), model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tests copy before they damage it."""
    directory = tmp_path_factory.mktemp("pristine") / "checkpoint"
    _save(directory)
    return directory


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


def test_what_was_learnt_is_kept(tmp_path: Path) -> None:
    """A checkpoint says how the log of its training was split; one that does not is read as well."""
    learnt = LearntPart(
        split="time", cut_ms=5, target="long-view", include_seen=False, part="known", last_ms=9
    )
    saved, model = _save(tmp_path / "a")
    assert saved.learnt is None
    again = save_checkpoint(
        tmp_path / "b", "test", saved.config, saved.catalog, model.state_dict(), learnt=learnt
    )
    assert open_checkpoint(again.directory).learnt == learnt


def test_every_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    """A daemon of another user, as in a container, can read what was trained; nobody more than the umask says."""
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(umask)
        try:
            saved, _ = _save(tmp_path / f"checkpoint-{umask}")
        finally:
            os.umask(before)
        assert {stat.S_IMODE(file.stat().st_mode) for file in saved.directory.iterdir()} == {mode}


def test_weights_that_may_not_be_read_are_not_said_to_be_missing(pristine: Path) -> None:
    """The reason is the one that an operator can act on."""
    with tempfile.TemporaryDirectory() as scratch:  # not below pytest's own folder, which is its user's alone
        Path(scratch).chmod(0o755)
        directory = Path(shutil.copytree(pristine, Path(scratch) / "checkpoint"))
        (directory / "model.safetensors").chmod(0)
        user = os.geteuid()
        if user == 0:  # which may read every file
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"model\.safetensors: cannot be read: Permission denied"):
                open_checkpoint(directory)
        finally:
            os.seteuid(user)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    """Config, catalog, name, version and every weight come back, and the model computes the same."""
    saved, model = _save(tmp_path / "new" / "checkpoint", d_ff=24)
    opened = open_checkpoint(tmp_path / "new" / "checkpoint")
    assert (opened.name, opened.version, opened.config) == ("test", saved.version, model.config)
    assert opened.catalog == CATALOG
    loaded = opened.load_model()
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    rows, layout = torch.ones(3, CONFIG.row_width), Layout.of(np.array([3]))
    with torch.no_grad():
        assert torch.equal(loaded(rows, layout), model(rows, layout))


def test_the_version_names_weights_catalog_and_config(tmp_path: Path) -> None:
    """The same content has the same version; another weight, video or setting has another."""
    same = [_save(tmp_path / str(number))[0].version for number in range(2)]
    others = [
        _save(tmp_path / "weights", seed=1)[0].version,
        _save(tmp_path / "config", temperature=0.2)[0].version,
        save_checkpoint(
            tmp_path / "catalog",
            "test",
            CONFIG,
            Catalog([f"w{number}" for number in range(20)], 3),
            _save(tmp_path / "again")[1].state_dict(),
        ).version,
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 4


def test_a_checkpoint_is_also_a_config_that_engines_know(pristine: Path) -> None:
    """config.json says architecture and sizes by the names that vLLM reads."""
    config = json.loads((pristine / "config.json").read_text())
    assert config["architectures"] == ["MTGRForRecommendation"]
    assert config["hidden_size"] == CONFIG.d_model
    assert config["vocab_size"] == CONFIG.vocab_size
    assert config["projection_dim"] == CONFIG.row_width


def _edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return edit


def _edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return edit


def _truncate(name: str) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return edit


def _flip_last_byte(name: str) -> Callable[[Path], object]:
    def edit(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[-1] ^= 1
        (directory / name).write_bytes(content)

    return edit


DAMAGE: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("no directory", shutil.rmtree, "", "no such checkpoint directory; `mtgr-stream train --out"),
    ("no config", lambda d: (d / "config.json").unlink(), "config.json", "missing; a checkpoint is"),
    ("no weights", lambda d: (d / "model.safetensors").unlink(), "model.safetensors", "missing"),
    ("no catalog", lambda d: (d / "catalog.json").unlink(), "catalog.json", "missing"),
    ("config is no JSON", _truncate("config.json"), "config.json", "not a JSON object"),
    ("config is a list", lambda d: (d / "config.json").write_text("[]"), "config.json", "not a JSON object"),
    (
        "another model's config",
        _edit_config(lambda c: c.update(model_type="llama")),
        "config.json",
        "model_type is 'llama', where 'mtgr' is wanted",
    ),
    (
        "unknown key",
        _edit_config(lambda c: c.update(vocab_sise=3)),
        "config.json",
        "unknown key 'vocab_sise'; did you mean vocab_size?",
    ),
    ("missing key", _edit_config(lambda c: c.pop("files")), "config.json", "key 'files' is missing"),
    ("name is a number", _edit_config(lambda c: c.update(name=3)), "config.json", "name is 3"),
    ("files is a list", _edit_config(lambda c: c.update(files=[])), "config.json", "files is []"),
    ("model is a list", _edit_config(lambda c: c.update(model=[])), "config.json", "model is []"),
    (
        "what was learnt is a list",
        _edit_config(lambda c: c.update(trained_on=[])),
        "config.json",
        "trained_on is [], where an object is wanted",
    ),
    (
        "unknown split",
        _edit_config(lambda c: c.update(trained_on={"split": "half"})),
        "config.json",
        "trained_on: split is 'half', where one of leave-one-out, none, time is wanted",
    ),
    (
        "unknown model key",
        _edit_config(lambda c: c["model"].update(n_laiers=3)),
        "config.json",
        "model: unknown key 'n_laiers'; did you mean n_layers?",
    ),
    (
        "model out of bounds",
        _edit_config(lambda c: c["model"].update(n_heads=0)),
        "config.json",
        "model: n_heads is 0, where a whole number of at least 1 and at most 512 is wanted",
    ),
    (
        "engine's keys disagree",
        _edit_config(lambda c: c.update(hidden_size=17)),
        "config.json",
        "hidden_size is 17, where the model section gives 16",
    ),
    (
        "edited within bounds",
        _edit_config(lambda c: c["model"].update(temperature=0.5)),
        "config.json",
        "it was edited",
    ),
    (
        "catalog too short",
        lambda d: (d / "catalog.json").write_bytes(Catalog(["a"], 3).to_json()),
        "catalog.json",
        "1 videos, where",
    ),
    ("catalog torn", _truncate("catalog.json"), "catalog.json", "truncated"),
    (
        "another catalog",
        lambda d: (d / "catalog.json").write_bytes(Catalog([f"w{n}" for n in range(20)], 3).to_json()),
        "catalog.json",
        "the file is damaged or of another checkpoint",
    ),
    ("weights torn", _truncate("model.safetensors"), "model.safetensors", "not a whole safetensors file"),
    (
        "weights empty",
        lambda d: (d / "model.safetensors").write_bytes(b""),
        "model.safetensors",
        "not a whole",
    ),
    (
        "a weight flipped",
        _flip_last_byte("model.safetensors"),
        "model.safetensors",
        "the file is damaged or of another checkpoint",
    ),
    (
        "tensor missing",
        _edit_weights(lambda t: t.pop("layers.1.out.weight")),
        "model.safetensors",
        "tensor 'layers.1.out.weight' is missing",
    ),
    (
        "tensor too many",
        _edit_weights(lambda t: t.update({"layers.1.out.wait": torch.zeros(1)})),
        "model.safetensors",
        "unexpected tensor 'layers.1.out.wait'; did you mean layers.1.out.weight?",
    ),
    (
        "fewer videos than the catalog",
        _edit_weights(
            lambda t: t.update({"embeddings.video.ids.weight": t["embeddings.video.ids.weight"][:-1].clone()})
        ),
        "model.safetensors",
        "tensor 'embeddings.video.ids.weight' is [22, 16], where the config wants [23, 16]",
    ),
]


@pytest.mark.parametrize(
    ("damage", "file", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE]
)
def test_damage_is_told_by_file_and_by_what_would_be_right(
    directory: Path, damage: Callable[[Path], object], file: str, message: str
) -> None:
    """Whatever is wrong is one InputError that begins with the file's path."""
    damage(directory)
    with pytest.raises(InputError) as caught:
        open_checkpoint(directory).load_model()
    assert str(caught.value).startswith(str(directory / file))
    assert message in str(caught.value)


def test_an_earlier_checkpoint_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    """Saving over a checkpoint leaves the new one alone in its place."""
    _save(tmp_path / "checkpoint", seed=0)
    new, _ = _save(tmp_path / "checkpoint", seed=1)
    assert open_checkpoint(tmp_path / "checkpoint").version == new.version
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_save_that_fails_leaves_what_was_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle of saving, the earlier checkpoint still loads."""
    before = open_checkpoint(directory).version

    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_file_digest", full)
    with pytest.raises(InputError, match=r"cannot be written: .*No space left on device"):
        _save(directory, seed=1)
    monkeypatch.undo()
    assert open_checkpoint(directory).version == before
    open_checkpoint(directory).load_model()
    assert [path.name for path in directory.parent.iterdir()] == ["checkpoint"]


def test_a_directory_of_other_things_is_kept(tmp_path: Path) -> None:
    """Neither a file nor a directory with anything else in it is overwritten by a checkpoint."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes\.txt', which is no part of a checkpoint"):
        _save(tmp_path)
    with pytest.raises(InputError, match="is a file, where a checkpoint directory is wanted"):
        check_target(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="is no writable directory"):
        check_target(tmp_path / "notes.txt" / "deeper" / "checkpoint")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_mount_point_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's volume cannot be renamed over: a directory in it can."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(InputError, match="is a mount point"):
        check_target(tmp_path)
    check_target(tmp_path / "model")


def test_half_precision_weights_load_as_single(directory: Path) -> None:
    """A checkpoint of bfloat16 weights is a checkpoint: the reference computes in float32."""
    opened = open_checkpoint(directory)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(opened.weights).items()}
    model = save_checkpoint(directory, "half", opened.config, opened.catalog, weights).load_model()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[name].float())


def test_opening_does_not_import_torch(tmp_path: Path) -> None:
    """A process that only needs config and catalog does not pay for torch."""
    path = tiny_checkpoint(tmp_path / "checkpoint")
    code = (
        "import sys; from mtgr.checkpoint import open_checkpoint; "
        f"open_checkpoint({str(path)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
