"""Layout, stages and cuts: derived from a spec, for any number of streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from parnet_deploy.errors import SpecError
from parnet_deploy.spec import (
    IMAGES,
    LOGITS,
    BlockSpec,
    ParNetSpec,
    StemMode,
    cuts,
    layout,
    stages,
    variant,
)
from parnet_deploy.spec.layout import member_block, stored_order

STEMS = st.sampled_from(["replicate", "share"])


def blocks_of(spec: ParNetSpec) -> Mapping[str, BlockSpec]:
    return {block.name: block for block in layout(spec)}


def test_the_imagenet_network_as_the_paper_draws_it() -> None:
    """Table A1, figure 2a: written out by hand, for ParNet-S."""
    got = [
        (b.name, b.kind, b.inputs, b.in_channels, b.out_channels, b.stride, b.scale)
        for b in layout(variant("s").spec)
        if not b.name.startswith("stream")
    ]
    assert got == [
        ("stem1", "plain", ("images",), 3, 64, 2, 2),
        ("stem2", "plain", ("stem1",), 64, 96, 2, 4),
        ("stem3", "plain", ("stem2",), 96, 192, 2, 8),
        ("stem4", "plain", ("stem3",), 192, 384, 2, 16),
        ("merge1", "plain", ("stream1_block4",), 96, 192, 2, 8),
        ("merge2", "fusion", ("stream2_block5", "merge1"), 192, 384, 2, 16),
        ("merge3", "fusion", ("stream3_block5", "merge2"), 384, 384, 1, 16),
        ("last", "plain", ("merge3",), 384, 1280, 2, 32),
        ("head", "head", ("last",), 1280, 1000, 1, 0),
    ]
    streams = [b for b in layout(variant("s").spec) if b.name.startswith("stream")]
    assert {b.kind for b in streams} == {"skip"}
    counts = [sum(b.name.startswith(f"stream{i}_") for b in streams) for i in (1, 2, 3)]
    assert counts == [4, 5, 5]


def test_the_cifar_network_as_the_paper_describes_it() -> None:
    blocks = blocks_of(variant("cifar-s").spec)
    stem = [(blocks[f"stem{i}"].kind, blocks[f"stem{i}"].scale) for i in range(1, 6)]
    assert stem == [("plain", 1), ("skip", 1), ("skip", 1), ("plain", 2), ("plain", 4)]
    assert blocks["last"].kind == "pointwise"
    assert blocks["last"].scale == 4


@given(specs())
def test_blocks_come_after_what_they_read_and_fit(spec: ParNetSpec) -> None:
    channels, scale = {IMAGES: 3}, {IMAGES: 1}
    for block in layout(spec):
        assert block.name not in channels, "names are unique"
        for name in block.inputs:
            assert channels[name] == block.in_channels
            assert scale[name] * block.stride == block.scale or block.kind == "head"
        if block.kind == "skip":
            assert (block.in_channels, block.stride) == (block.out_channels, 1)
        channels[block.name], scale[block.name] = block.out_channels, block.scale
    (*_, head) = layout(spec)
    assert all(scale[name] == spec.stride for name in head.inputs)
    assert len(head.inputs) == spec.members
    assert sum(b.kind == "fusion" for b in layout(spec)) == len(spec.stream_widths) - 1


@given(specs(), STEMS)
def test_stages_hold_every_block_and_every_cut_is_made_and_read(
    spec: ParNetSpec, stem: StemMode
) -> None:
    stem = stem if spec.members == 1 else "replicate"
    cut_into = stages(spec, stem)
    blocks = blocks_of(spec)
    names = [stage.name for stage in cut_into]
    streams = [f"stream{i}" for i in range(1, spec.streams + 1)]
    assert names == [*(["stem"] if stem == "share" else []), *streams, "fusion"]
    held = [name for stage in cut_into for name in stage.blocks]
    assert set(held) == set(blocks)
    twice = {name for name in held if held.count(name) > 1}
    assert all(name.startswith("stem") for name in twice)
    assert not twice or spec.members == 1
    assert not twice or stem == "replicate"

    available = {IMAGES}
    for stage in cut_into:
        assert set(stage.inputs) <= available, "a stage reads only what stages before it give"
        inside = set(stage.blocks)
        for name in stage.blocks:
            assert set(blocks[name].inputs) <= inside | set(stage.inputs)
        available |= set(stage.outputs)
    assert cut_into[-1].outputs == (LOGITS,)

    crossing = cuts(cut_into)
    given_away = {value for stage in cut_into for value in stage.outputs} - {LOGITS}
    assert {cut.tensor for cut in crossing} == given_away, "nothing is given that nobody reads"
    by_name = {stage.name: stage for stage in cut_into}
    for cut in crossing:
        assert cut.tensor in by_name[cut.source].outputs
        assert cut.tensor in by_name[cut.target].inputs


def test_with_a_replicated_stem_only_finished_stream_outputs_cross() -> None:
    cut_into = stages(tiny_spec(), "replicate")
    assert [(c.tensor, c.source, c.target) for c in cuts(cut_into)] == [
        ("stream2_block2", "stream2", "fusion"),
        ("merge1", "stream1", "fusion"),
        ("stream3_block2", "stream3", "fusion"),
    ]
    assert all(stage.inputs == (IMAGES,) for stage in cut_into[:-1])
    assert [stage.blocks[:4] for stage in cut_into[:3]] == [
        ("stem1", "stem2", "stream1_block1", "stream1_block2"),
        ("stem1", "stem2", "stem3", "stream2_block1"),
        ("stem1", "stem2", "stem3", "stem4"),
    ]


def test_with_a_shared_stem_its_features_cross() -> None:
    assert [(c.tensor, c.source, c.target) for c in cuts(stages(tiny_spec(), "share"))] == [
        ("stem2", "stem", "stream1"),
        ("stem3", "stem", "stream2"),
        ("stem4", "stem", "stream3"),
        ("stream2_block2", "stream2", "fusion"),
        ("merge1", "stream1", "fusion"),
        ("stream3_block2", "stream3", "fusion"),
    ]


def test_an_ensembles_members_are_its_streams() -> None:
    spec = tiny_spec(stream_widths=(8,), stream_blocks=(2,), members=2)
    got = [
        (b.name, b.kind, b.inputs, b.in_channels, b.out_channels, b.stride, b.scale)
        for b in layout(spec)
    ]
    assert got == [
        ("stream1_stem1", "plain", ("images",), 3, 8, 2, 2),
        ("stream1_stem2", "plain", ("stream1_stem1",), 8, 8, 2, 4),
        ("stream1_block1", "skip", ("stream1_stem2",), 8, 8, 1, 4),
        ("stream1_block2", "skip", ("stream1_block1",), 8, 8, 1, 4),
        ("stream1_last", "plain", ("stream1_block2",), 8, 32, 2, 8),
        ("stream2_stem1", "plain", ("images",), 3, 8, 2, 2),
        ("stream2_stem2", "plain", ("stream2_stem1",), 8, 8, 2, 4),
        ("stream2_block1", "skip", ("stream2_stem2",), 8, 8, 1, 4),
        ("stream2_block2", "skip", ("stream2_block1",), 8, 8, 1, 4),
        ("stream2_last", "plain", ("stream2_block2",), 8, 32, 2, 8),
        ("head", "head", ("stream1_last", "stream2_last"), 32, 7, 1, 0),
    ]
    cut_into = stages(spec, "replicate")
    assert [(stage.name, stage.inputs, stage.outputs) for stage in cut_into] == [
        ("stream1", (IMAGES,), ("stream1_last",)),
        ("stream2", (IMAGES,), ("stream2_last",)),
        ("fusion", ("stream1_last", "stream2_last"), (LOGITS,)),
    ]
    assert [(c.tensor, c.source, c.target) for c in cuts(cut_into)] == [
        ("stream1_last", "stream1", "fusion"),
        ("stream2_last", "stream2", "fusion"),
    ]


def test_a_members_blocks_are_those_of_a_network_by_itself() -> None:
    alone = tiny_spec(stream_widths=(8,), stream_blocks=(2,))
    ensemble = blocks_of(tiny_spec(stream_widths=(8,), stream_blocks=(2,), members=12))
    for member in (1, 12):
        for block in layout(alone)[:-1]:
            name = member_block(member, block.name)
            inputs = tuple(n if n == IMAGES else member_block(member, n) for n in block.inputs)
            assert ensemble[name] == replace(block, name=name, inputs=inputs)


def test_members_share_no_stem() -> None:
    spec = tiny_spec(stream_widths=(8,), stream_blocks=(2,), members=2)
    with pytest.raises(SpecError, match=r"2 members .* have a stem each"):
        stages(spec, "share")


def test_only_a_fusions_output_is_stored_in_another_order() -> None:
    orders = {block.name: stored_order(block) for block in layout(tiny_spec())}
    assert {name for name, order in orders.items() if order} == {"merge2", "merge3"}
    assert orders["merge2"][:6] == (0, 12, 1, 13, 2, 14)
    assert sorted(orders["merge2"]) == list(range(24))


@pytest.mark.parametrize("last_stride", [1, 2])
def test_the_last_block_is_a_downsampling_block_whatever_its_widths(last_stride: int) -> None:
    spec = tiny_spec(stream_widths=(8, 16, 32), last_stride=last_stride)
    assert blocks_of(spec)["last"].kind == "plain"
