"""Operations and bytes of every block in fused form, for a precision and a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from parnet_deploy.errors import UsageError
from parnet_deploy.spec import (
    IMAGES,
    LOGITS,
    BlockCounts,
    BlockSpec,
    ParNetSpec,
    count_block,
    layout,
)

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]

ITEM_BYTES: Mapping[Precision, int] = {
    "fp32": 4,
    "tf32": 4,  # computed with 19 bits, stored in 32
    "fp16": 2,
    "bf16": 2,
    "int8": 1,
    "fp8": 1,
}
"""Bytes of a weight and of an activation."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one layer costs, or several.

    Attributes:
        operations: two per multiply-add.
        weight_bytes: weights, read once whatever the batch.
        read_bytes: activations read.
        written_bytes: activations written.
    """

    operations: int = 0
    weight_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All that crosses between memory and the cores."""
        return self.weight_bytes + self.read_bytes + self.written_bytes

    def __add__(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(
            operations=self.operations + other.operations,
            weight_bytes=self.weight_bytes + other.weight_bytes,
            read_bytes=self.read_bytes + other.read_bytes,
            written_bytes=self.written_bytes + other.written_bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCost:
    """What a block costs, with kernels as few as they can be.

    Everything else of a block (its skip, its normalisation, its activation, a fusion's joining)
    can be part of these kernels, and costs nothing here.

    Attributes:
        name: the block's.
        layer: its convolution, or the head's linear layer.
        squeeze: the matrix product behind the global average, None where it has none.
        kernels: how many have to run one after the other: the squeeze scales what the convolution
            makes, so they are two; the head's are pooling and a linear layer.
    """

    name: str
    layer: Cost
    squeeze: Cost | None
    kernels: int

    @property
    def layers(self) -> tuple[Cost, ...]:
        """The layer, and the squeeze where there is one."""
        return (self.layer,) if self.squeeze is None else (self.layer, self.squeeze)

    @property
    def total(self) -> Cost:
        """Both together."""
        return sum(self.layers, Cost())


def block_costs(
    spec: ParNetSpec, *, precision: Precision = "fp32", batch: int = 1
) -> dict[str, BlockCost]:
    """What every block of a network costs, by its name.

    Args:
        spec: the network.
        precision: of weights and activations.
        batch: images per run.

    Raises:
        UsageError: the batch is not at least 1.
    """
    if batch < 1:
        raise UsageError(f"a batch is at least 1, not {batch}")
    item = ITEM_BYTES[precision]
    return {
        block.name: _block_cost(block, count_block(spec, block), item=item, batch=batch)
        for block in layout(spec)
    }


def _block_cost(block: BlockSpec, counts: BlockCounts, *, item: int, batch: int) -> BlockCost:
    # The head reads what is pooled already: the block before it can pool while it writes.
    read_pixels = 1 if block.kind == "head" else counts.pixels * block.stride**2
    layer = Cost(
        operations=2 * counts.weights * counts.pixels * batch,
        weight_bytes=counts.weights * item,
        read_bytes=counts.reads * read_pixels * batch * item,
        written_bytes=block.out_channels * counts.pixels * batch * item,
    )
    squeeze = Cost(
        operations=2 * counts.squeeze * batch,
        weight_bytes=counts.squeeze * item,
        read_bytes=counts.reads * batch * item,
        written_bytes=block.out_channels * batch * item,
    )
    return BlockCost(
        name=block.name,
        layer=layer,
        squeeze=squeeze if counts.squeeze else None,
        kernels=2 if counts.squeeze or block.kind == "head" else 1,
    )


def value_bytes(
    spec: ParNetSpec, *, precision: Precision = "fp32", batch: int = 1
) -> dict[str, int]:
    """Size of every value by its name, images and logits among them."""
    height, width = spec.image_size
    sizes = {IMAGES: 3 * height * width * batch * ITEM_BYTES[precision]}
    for name, cost in block_costs(spec, precision=precision, batch=batch).items():
        sizes[LOGITS if name == "head" else name] = cost.layer.written_bytes
    return sizes


def total(costs: Iterable[BlockCost]) -> Cost:
    """The sum over blocks: of a stage, or of a network."""
    return sum((cost.total for cost in costs), Cost())


def critical_kernels(spec: ParNetSpec) -> int:
    """How many kernels of one run have to wait for each other: the longest path's."""
    costs = block_costs(spec)
    longest = {IMAGES: 0}
    for block in layout(spec):
        before = max(longest[value] for value in block.inputs)
        longest[block.name] = before + costs[block.name].kernels
    return longest["head"]
