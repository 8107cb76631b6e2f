"""One model that is measured, as a checkpoint for each method."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from mtgr.bench.users import video_name
from mtgr.catalog import Catalog
from mtgr.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint, save_checkpoint
from mtgr.presets import preset
from mtgr.quantization.run import quantize_checkpoint
from mtgr.quantization.scheme import Method, Quantization
from mtgr.training.log import EventLog


class MeasuredModel:
    """A trained checkpoint, or a preset without weights; what is quantised is kept in a working directory."""

    def __init__(
        self, checkpoint: Path | None, preset_name: str | None, log: EventLog | None, work: Path
    ) -> None:
        self._work = work
        self._log = log
        self._preset = preset_name
        self.dummy = checkpoint is None
        self.plain = open_checkpoint(checkpoint) if checkpoint is not None else self._made_up(None)

    def by(self, method: Method | None) -> Checkpoint:
        """InputError if the model cannot be quantised so."""
        if method is None:
            return self.plain
        if self.dummy:
            return self._made_up(method)
        directory = self._work / f"{self.plain.name}-{self.plain.version}-{method}"
        if (directory / CONFIG_FILE).exists():
            return open_checkpoint(directory)
        # in a process of its own: with CUDA in this one, vLLM could not fork its engines'
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(_quantize, self.plain.directory, directory, method, self._log).result()
        return open_checkpoint(directory)

    def _made_up(self, method: Method | None) -> Checkpoint:
        """A checkpoint without weights, which an engine makes up."""
        assert self._preset is not None
        config = preset(self._preset)
        names = [video_name(index) for index in range(config.n_items)]
        catalog = Catalog(names, config.unknown_buckets, config.spare_items)
        quantization = None if method is None else Quantization.of(method, config)
        directory = self._work / f"{self._preset}-{method or 'plain'}-without-weights"
        return save_checkpoint(directory, self._preset, config, catalog, {}, quantization)


def _quantize(source: Path, target: Path, method: Method, log: EventLog | None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    quantize_checkpoint(source, target, method, log if method == "awq" else None, device=device)
