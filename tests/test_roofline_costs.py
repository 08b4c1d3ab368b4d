"""Operations and bytes of blocks: against the paper's counts, and against torch's own."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs, stem_modes

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline import (
    ITEM_BYTES,
    PRECISIONS,
    Cost,
    Precision,
    block_costs,
    critical_kernels,
    total,
    value_bytes,
)
from parnet_deploy.spec import (
    IMAGES,
    LOGITS,
    VARIANTS,
    ParNetSpec,
    count,
    layout,
    stages,
    variant,
)


@pytest.mark.parametrize(
    ("name", "gflop"), [("s", 9.67), ("m", 17.16), ("l", 26.65), ("xl", 41.43)]
)
def test_operations_are_the_papers(name: str, gflop: float) -> None:
    cost = total(block_costs(variant(name).spec).values())
    assert round(cost.operations / 1e9, 2) == gflop


def test_a_block_by_hand() -> None:
    """ParNet-L's first block: 3 to 64 channels, 224x224 to 112x112, squeezed."""
    first = block_costs(variant("l").spec, precision="fp16", batch=2)["stem1"]
    assert first.layer == Cost(
        operations=2 * 2 * 27 * 64 * 112 * 112,
        weight_bytes=2 * 27 * 64,
        read_bytes=2 * 2 * 3 * 224 * 224,
        written_bytes=2 * 2 * 64 * 112 * 112,
    )
    assert first.squeeze == Cost(
        operations=2 * 2 * 3 * 64,
        weight_bytes=2 * 3 * 64,
        read_bytes=2 * 2 * 3,
        written_bytes=2 * 2 * 64,
    )
    assert first.total.bytes == first.layer.bytes + first.squeeze.bytes


@given(spec=specs(), precision=st.sampled_from(PRECISIONS), batch=st.integers(1, 4))
def test_blocks_add_up_to_the_network(spec: ParNetSpec, precision: Precision, batch: int) -> None:
    costs = block_costs(spec, precision=precision, batch=batch)
    assert list(costs) == [block.name for block in layout(spec)]
    cost = total(costs.values())
    assert cost.operations == batch * count(spec).flop_fused
    # All fused parameters but the biases and the normalisations are weights of these layers.
    others = sum(
        block.out_channels
        + 2 * block.in_channels * len(block.inputs) * (block.kind in ("skip", "fusion"))
        for block in layout(spec)
    )
    assert cost.weight_bytes == (count(spec).parameters_fused - others) * ITEM_BYTES[precision]


@given(spec=specs(), batch=st.integers(1, 4))
def test_what_a_block_reads_is_what_others_wrote(spec: ParNetSpec, batch: int) -> None:
    sizes = value_bytes(spec, batch=batch)
    costs = block_costs(spec, batch=batch)
    for block in layout(spec):
        written = sizes[LOGITS if block.name == "head" else block.name]
        assert written == costs[block.name].layer.written_bytes
        read = sum(sizes[name] for name in block.inputs)
        if block.kind != "head":  # which reads what is pooled
            assert costs[block.name].layer.read_bytes == read
    height, width = spec.image_size
    assert sizes[IMAGES] == batch * 3 * height * width * 4


def test_cuts_of_l_in_float16_are_half_and_quarter_a_megabyte() -> None:
    sizes = value_bytes(variant("l").spec, precision="fp16")
    ends = ("merge1", "stream2_block5", "stream3_block5")
    assert [round(sizes[name] / 1e6, 2) for name in ends] == [0.5, 0.5, 0.25]


@given(specs())
def test_a_replicated_stem_costs_its_blocks_again(spec: ParNetSpec) -> None:
    costs = block_costs(spec)
    whole = total(costs.values())
    for mode in stem_modes(spec):
        blocks = [name for stage in stages(spec, mode) for name in stage.blocks]
        again = [name for name in set(blocks) for _ in range(blocks.count(name) - 1)]
        split = total(costs[name] for name in blocks)
        assert split == whole + total(costs[name] for name in again)
        assert mode == "replicate" or not again


def test_kernels_of_the_papers_networks() -> None:
    """The chain of 24 kernels, and about 46 of them in all, with everything else in epilogues."""
    for name in ("s", "m", "l", "xl"):
        spec = variant(name).spec
        assert critical_kernels(spec) == 24
        assert sum(cost.kernels for cost in block_costs(spec).values()) == 46


@pytest.mark.parametrize("name", VARIANTS)
def test_without_squeezes_a_chain_is_as_long_as_the_depth_and_the_pooling(name: str) -> None:
    spec = dataclasses.replace(VARIANTS[name].spec, squeeze=False)
    assert critical_kernels(spec) == count(spec).depth + 1


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1, not 0"):
        block_costs(variant("s").spec, batch=0)
