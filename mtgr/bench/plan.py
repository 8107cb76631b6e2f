"""What one run is to measure, as its parts get it: plain data, since each part is a process of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from mtgr.bench.cases import Case, longest
from mtgr.bench.records import Device, Setting
from mtgr.config import BLOCK_EVENTS, ModelConfig
from mtgr.presets import preset
from mtgr.serving.served_config import head_size

NUMBER_BYTES: Final = {"float32": 4, "bfloat16": 2}
DEFAULT_PRESETS: Final[dict[Device, tuple[str, ...]]] = {"cuda": ("seed-high",), "cpu": ("tiny", "small")}
BLOCK_SIZE: Final = 64
"""Tokens of a cache block of ours on a GPU, the largest that the engine takes by itself."""
WARM_UPS: Final = 2
PROFILED: Final = 4
"""Batches that a profiler watches."""

_SPARE_GIB: Final = 1.0


class Plan(Struct, frozen=True, kw_only=True):
    """One run on one device."""

    device: Device
    preset: str
    dtype: str
    cases: tuple[Case, ...]
    layer_lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    layer_tokens: int = 16_384
    """Of a measurement of one layer, in as many sequences as that makes."""
    repeats: int
    """Batches of a row."""
    load_users: int = 0
    """0 for no load."""
    load_events: int = 1000
    """That each of them has cached."""
    load_seconds: float = 6.0
    """Of each of the two phases."""
    options: dict[str, Any] = {}
    """Of `EngineOptions`, beyond what the benchmark sets itself."""
    directory: Path
    """For checkpoints and configs."""
    out: Path
    command: str
    """By which the run was started."""

    @property
    def setting(self) -> Setting:
        """What every record of this run says of itself."""
        return Setting(self.device, self.preset, self.dtype, self.options)

    @property
    def number_bytes(self) -> int:
        """Of a weight, and of a number in the cache."""
        return NUMBER_BYTES[self.dtype]

    @property
    def config(self) -> ModelConfig:
        """The preset's, with sequences as long as the longest case becomes: the tiny one's are shorter than that."""
        config = preset(self.preset)
        events = longest(self.cases) + self.appended
        if self.load_users:
            events = max(events, self.load_events + BLOCK_EVENTS)
        if events > config.capacity:
            config = config.replace(max_events=-(-events // BLOCK_EVENTS) * BLOCK_EVENTS)
        return config

    @property
    def appended(self) -> int:
        """Most events that a cached history grows by while it is measured."""
        return WARM_UPS + self.repeats + PROFILED

    @property
    def fresh(self) -> tuple[Case, ...]:
        """Cases that no system has seen before."""
        return tuple(case for case in self.cases if not case.cached)

    @property
    def cached(self) -> tuple[Case, ...]:
        """Cases that a system with a cache has seen but for one event."""
        return tuple(case for case in self.cases if case.cached)

    def cache_gib(self, case: Case) -> float:
        """GiB of KV cache that a case needs, some to spare."""
        return self._cache_gib(case.users, case.length + self.appended)

    @property
    def load_gib(self) -> float:
        """GiB of KV cache that the users of a load need, each of whom may grow to the model's length."""
        return self._cache_gib(self.load_users, self.config.max_length)

    def _cache_gib(self, users: int, tokens: int) -> float:
        config = self.config
        token = config.n_layers * config.n_heads * (head_size(config) + config.d_v) * self.number_bytes
        return users * -(-tokens // BLOCK_SIZE) * BLOCK_SIZE * token / 2**30 + _SPARE_GIB

    def affordable(self, free_gib: float) -> tuple[tuple[Case, ...], float]:
        """The cases whose caches have room in so much memory, and the GiB of the largest of these caches."""
        needs = {case: self.cache_gib(case) for case in self.cases}
        possible = tuple(case for case in self.cases if needs[case] <= free_gib)
        wanted = [*needs.values(), self.load_gib]
        return possible, math.ceil(max((need for need in wanted if need <= free_gib), default=_SPARE_GIB))


def encode_plan(plan: Plan) -> str:
    """A plan as an argument of a process."""
    return msgspec.json.encode(plan, enc_hook=str).decode()


def decode_plan(text: str) -> Plan:
    """What `encode_plan` encoded."""
    return msgspec.json.decode(text, type=Plan, dec_hook=lambda kind, value: kind(value))
