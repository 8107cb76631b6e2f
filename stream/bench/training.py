"""`python -m stream.bench.training`: what a training step costs, against a padded Transformer of the same size.

MTGR's mixed mask lets one sequence hold a user's history and all candidates, each seeing what came before its place;
the published claim is 30 % less memory than full attention. Here both models get the same tokens and have the same
number of parameters. Sequences are as long as those of a stream: a few long ones among many short ones.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import ModelConfig
from mtgr.features import CANDIDATE, EVENT, GROUP_LANE, PROFILE, write_video
from mtgr.model.jagged import Layout
from mtgr.model.masks import Roles
from mtgr.model.mtgr import MTGR
from mtgr.presets import preset

_CANDIDATES: Final = 8


class StepCost(Struct, frozen=True):
    """One model's training step: medians over the repeats, forward and backward."""

    name: str
    parameters: int
    tokens: int
    milliseconds: float
    kept_bytes: int
    """What the forward keeps for the backward, each storage counted once, weights left out."""
    peak_bytes: int | None
    """Most memory the device held above weights and inputs; known on CUDA."""


class _Block(nn.Module):
    """A pre-norm Transformer layer, as wide in its attention as an HSTU layer, with the other parameters in its MLP."""

    def __init__(self, d_model: int, heads: int, width: int, d_ff: int, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.fused = fused
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * width, bias=False)
        self.out = nn.Linear(width, d_model, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, length, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, H, L, d)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            mixed = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(b, length, -1))
        wider: Tensor = self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return x + wider


class _Transformer(nn.Module):
    def __init__(self, config: ModelConfig, fused: bool) -> None:
        super().__init__()
        width = (
            config.n_heads * config.d_v
        )  # uvqk and out of HSTU are five times as many columns, qkv and out four
        d_ff = config.d_ff + width // 2
        self.layers = nn.ModuleList(
            _Block(config.d_model, config.n_heads, width, d_ff, fused) for _ in range(config.n_layers)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


def draw_lengths(users: int, config: ModelConfig, seed: int = 0) -> npt.NDArray[np.int64]:
    """Tokens of each user's history: log-normal about a sixth of the longest, cut there, as those of a stream are."""
    drawn = np.random.default_rng(seed).lognormal(np.log(config.max_length / 6), 1.0, users)
    return np.clip(drawn, 2, config.max_length).astype(np.int64)


def run(config: ModelConfig, users: int, device: torch.device, repeats: int) -> list[StepCost]:
    """The step's cost of MTGR on joined sequences, and of Transformers on padded ones, for the same users."""
    histories = draw_lengths(users, config)
    lengths = histories + _CANDIDATES
    rows, roles, layout = _sequences(config, histories, device)
    torch.manual_seed(0)
    with device:
        ours = MTGR(config)
        plain, fused = _Transformer(config, fused=False), _Transformer(config, fused=True)
    layers = sum(p.numel() for p in ours.layers.parameters())
    costs = [
        _measure("MTGR, joined, mixed mask", ours.layers, int(lengths.sum()), repeats, device,
                 lambda: ours(rows, layout, roles)),
    ]  # fmt: skip
    longest = int(lengths.max())
    inside = torch.arange(longest, device=device) < torch.from_numpy(lengths).to(device)[:, None]
    padded = torch.randn(users, longest, config.d_model, device=device)
    mask = inside[:, None, None, :].expand(-1, -1, longest, -1)
    for name, model in (("Transformer, padded, full attention", plain), ("the same, fused attention", fused)):
        forward = functools.partial(model, padded, mask)
        costs.append(_measure(name, model, users * longest, repeats, device, forward))
    assert abs(costs[1].parameters / layers - 1) < 0.05
    return costs


def _sequences(
    config: ModelConfig, histories: npt.NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Roles, Layout]:
    """Rows of histories, each with candidates at its end, that hide behind the mixed mask."""
    lengths = histories + _CANDIDATES
    random = np.random.default_rng(1)
    rows = np.zeros((int(lengths.sum()), config.row_width), np.float32)
    write_video(rows, random.integers(0, config.n_items, len(rows)))
    layout = Layout.of(lengths, device)
    place = layout.positions.cpu().numpy()
    history = np.repeat(histories, lengths)
    rows[:, GROUP_LANE] = np.where(place == 0, PROFILE, np.where(place < history, EVENT, CANDIDATE))
    order = np.minimum(place, history)
    roles = Roles(
        static=torch.from_numpy(place == 0).to(device),
        candidate=torch.from_numpy(place >= history).to(device),
        order=torch.from_numpy(order).to(device),
    )
    return torch.from_numpy(rows).to(device), roles, layout


def _measure(
    name: str,
    layers: nn.Module,
    tokens: int,
    repeats: int,
    device: torch.device,
    forward: Callable[[], Tensor],
) -> StepCost:
    on_cuda = device.type == "cuda"
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in layers.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unchanged(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, unchanged):
        output = forward()
    kept_bytes = sum(kept.values())
    torch.autograd.backward(output.sum())
    del output
    times, peaks = [], []
    for _ in range(repeats):
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_cuda else 0
        began = time.perf_counter()
        torch.autograd.backward(forward().sum())
        if on_cuda:
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        times.append(1000 * (time.perf_counter() - began))
    return StepCost(
        name,
        sum(parameter.numel() for parameter in layers.parameters()),
        tokens,
        statistics.median(times),
        kept_bytes,
        int(statistics.median(peaks)) if peaks else None,
    )


@click.command()
@click.option("--preset", "name", default="small", show_default=True)
@click.option("--users", default=32, show_default=True, help="Users of a step.")
@click.option("--max-events", type=int, help="Cut histories at so many events.  [default: the preset's]")
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
def main(name: str, users: int, max_events: int | None, repeats: int, device: str) -> None:
    """Measure one training step of a preset's layers, in float32."""
    config = preset(name).replace(n_items=1000)
    if max_events is not None:
        config = config.replace(max_events=max_events)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    costs = run(config, users, torch.device(device), repeats)
    table = Table(
        title=f"One training step, {name}, {users} users, at most {config.max_length} tokens, {where}"
    )
    for column in ("model", "parameters of the layers", "tokens", "ms", "kept for the backward", "peak"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for cost in costs:
        table.add_row(
            cost.name,
            f"{cost.parameters:,}",
            f"{cost.tokens:,}",
            f"{cost.milliseconds:,.1f}",
            f"{cost.kept_bytes / 2**20:,.0f} MiB",
            "-" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:,.0f} MiB",
        )
    ours, plain, fused = costs
    table.caption = (
        f"memory kept, MTGR against full attention: {ours.kept_bytes / plain.kept_bytes - 1:+.0%}; "
        f"against the fused one: {ours.kept_bytes / fused.kept_bytes - 1:+.0%}"
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
