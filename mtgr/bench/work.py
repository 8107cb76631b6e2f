"""The floor of a batch: the fewest bytes to move and operations to do, over what the device does at most.

Counted are the weights, each read once, the keys and values of the tokens a query sees, each read once and each new
one written once, and what the linear layers and attention multiply. Activations are not: a perfect kernel would keep
them on the chip. No program runs faster than the larger of the two times; a real one has both, one after the other.
"""

from __future__ import annotations

from msgspec import Struct

from mtgr.bench.cases import Case
from mtgr.bench.records import Ceilings
from mtgr.config import ModelConfig


class Shape(Struct, frozen=True):
    """What the cost of a decoder depends on."""

    layers: int
    layer_weights: int
    """Numbers in the linear layers of one layer: each is multiplied once for a token."""
    heads: int
    d_qk: int
    d_v: int
    d_model: int
    catalog: int
    """Videos, or tokens, that the head chooses among."""
    number_bytes: int


class Work(Struct, frozen=True):
    """Bytes to and from the device's memory, and operations: a multiplication and an addition are two."""

    bytes: int
    operations: int

    def floor_ms(self, ceilings: Ceilings) -> float:
        """Milliseconds below which no program comes."""
        return 1000 * max(
            self.bytes / ceilings.bytes_per_second, self.operations / ceilings.operations_per_second
        )

    def bound(self, ceilings: Ceilings) -> str:
        """What the floor is made of."""
        moving = self.bytes / ceilings.bytes_per_second
        computing = self.operations / ceilings.operations_per_second
        return "bytes" if moving >= computing else "operations"


def hstu_shape(config: ModelConfig, number_bytes: int) -> Shape:
    """Of a model of ours: gate, value, query, key and output, and the two of the MLP where there is one."""
    width_v, width_qk = config.n_heads * config.d_v, config.n_heads * config.d_qk
    return Shape(
        layers=config.n_layers,
        layer_weights=config.d_model * (3 * width_v + 2 * width_qk + 2 * config.d_ff),
        heads=config.n_heads,
        d_qk=config.d_qk,
        d_v=config.d_v,
        d_model=config.d_model,
        catalog=config.n_slots,
        number_bytes=number_bytes,
    )


def llama_shape(config: ModelConfig, d_ff: int, number_bytes: int) -> Shape:
    """Of vLLM's Llama as wide and as deep: query, key, value and output, and the three of its MLP."""
    return Shape(
        layers=config.n_layers,
        layer_weights=config.d_model * (4 * config.n_heads * config.d_qk + 3 * d_ff),
        heads=config.n_heads,
        d_qk=config.d_qk,
        d_v=config.d_qk,
        d_model=config.d_model,
        catalog=config.vocab_size,
        number_bytes=number_bytes,
    )


def batch_work(shape: Shape, case: Case) -> Work:
    """The work of one batch: each user's new tokens through all layers, and the last of them through the head."""
    tokens = case.users * case.new_tokens
    weights = shape.layers * shape.layer_weights + shape.catalog * shape.d_model
    cached_numbers = shape.layers * shape.heads * (shape.d_qk + shape.d_v)  # of one token
    read = case.users * (case.length - case.new_tokens)
    moved = weights + tokens * shape.d_model + (read + tokens) * cached_numbers
    pairs = case.users * _pairs(case.length, case.new_tokens)
    operations = (
        2 * tokens * shape.layers * shape.layer_weights
        + 2 * pairs * cached_numbers
        + 2 * case.users * shape.catalog * shape.d_model
    )
    return Work(shape.number_bytes * moved, operations)


def _pairs(length: int, new_tokens: int) -> int:
    """Queries and the keys they see, causally, where the last `new_tokens` of a sequence ask."""
    cached = length - new_tokens
    return new_tokens * cached + new_tokens * (new_tokens + 1) // 2


def layer_work(
    *,
    weights: int,
    heads: int,
    d_qk: int,
    d_v: int,
    d_model: int,
    length: int,
    sequences: int,
    number_bytes: int,
) -> Work:
    """The work of one layer alone: tokens come from memory and go back to it, and so do their keys and values."""
    tokens = length * sequences
    attended = heads * (d_qk + d_v)
    return Work(
        number_bytes * (weights + tokens * (2 * d_model + attended)),
        2 * tokens * weights + 2 * sequences * _pairs(length, length) * attended,
    )
