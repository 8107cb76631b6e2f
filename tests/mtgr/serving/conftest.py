"""What the tests of serving share. Modules that import vLLM are imported in tests: it takes ten seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import random_checkpoint

from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.reference import ReferenceRecommender


@pytest.fixture(scope="session", autouse=True)
def _no_compiler() -> Iterator[None]:
    """An engine within this process would wait for the compiler as no engine process does."""
    with pytest.MonkeyPatch.context() as patch:
        if "TORCH_COMPILE_DISABLE" not in os.environ:
            patch.setenv("TORCH_COMPILE_DISABLE", "1")
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of two layers, with an MLP, for 500 videos and sequences of up to 80 events."""
    return open_checkpoint(random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random"))


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> ReferenceRecommender:
    """The plain torch generator of the same checkpoint."""
    return ReferenceRecommender(checkpoint)


@pytest.fixture(scope="session")
def damaged_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of which one byte of the weights has changed."""
    directory = random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "damaged")
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return directory
