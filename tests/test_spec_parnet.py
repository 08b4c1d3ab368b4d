"""ParNetSpec: what can be built, what cannot, and how it is changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
from conftest import tiny_spec
from hypothesis import given
from hypothesis.strategies import integers
from strategies import specs

from parnet_deploy.errors import SpecError, UsageError
from parnet_deploy.spec import VARIANTS, ParNetSpec, depth, variant


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "a name that can be part of a file's"),
        ({"name": ".."}, "no leading dot"),
        ({"name": ".hidden"}, "not '.hidden'"),
        ({"name": "../../else/where"}, "no path separator"),
        ({"name": "a\\b"}, "no path separator"),
        ({"name": "two words"}, "no space"),
        ({"name": "line\n"}, "no space"),
        ({"stream_widths": ()}, "1 to 4 streams, not 0"),
        ({"stream_widths": (8, 8, 8, 8, 8)}, "1 to 4 streams, not 5"),
        ({"stream_blocks": (2, 2)}, "one number of blocks per stream"),
        ({"stream_blocks": (2, 0, 2)}, "at least one block"),
        ({"stream_widths": (8, 18, 24)}, "multiples of 4"),
        ({"last_width": 0}, "positive widths"),
        ({"stem_widths": (-8,)}, "positive widths"),
        ({"stem_strides": (2,)}, "stem strides"),
        ({"stem_strides": (2, 3)}, "stem strides"),
        ({"last_stride": 4}, "a last stride of 1 or 2"),
        ({"last": "maxpool"}, "a last block of"),
        ({"last": "pointwise"}, "last_stride 1"),
        ({"activation": "gelu"}, "an activation of"),
        ({"classes": 0}, "at least one class"),
        ({"dropout": 1.0}, "a dropout in [0, 1)"),
        ({"dropout": float("nan")}, "a dropout in [0, 1)"),
        ({"conv_dropout": -0.1}, "a conv_dropout in [0, 1), not -0.1"),
        ({"conv_dropout": float("nan")}, "a conv_dropout in [0, 1)"),
        ({"members": 0}, "at least one member, not 0"),
        ({"members": 2}, "one stream in each of an ensemble's 2 members, not 3"),
        ({"bn_eps": 0.0}, "a positive bn_eps"),
        ({"bn_eps": float("inf")}, "a positive bn_eps"),
        ({"image_size": (64, 72)}, "a multiple of 32 both ways, not 64x72"),
        ({"image_size": (0, 64)}, "a multiple of 32"),
        ({"image_size": (-32, 64)}, "a multiple of 32"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(SpecError, match="a ParNet needs") as caught:
        tiny_spec(**changes)
    assert words in str(caught.value)
    assert isinstance(caught.value, UsageError), "so that the exit status is 2"


def test_a_spec_is_a_frozen_value() -> None:
    spec = tiny_spec()
    assert spec == tiny_spec()
    assert hash(spec) == hash(tiny_spec())
    with pytest.raises(FrozenInstanceError):
        spec.classes = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        ParNetSpec("tiny", (8,))  # type: ignore[call-arg,misc]


@pytest.mark.parametrize("name", VARIANTS)
def test_its_own_widths_leave_a_variant_as_it_is(name: str) -> None:
    spec = VARIANTS[name].spec
    assert spec.with_widths(spec.widths) == spec


def test_the_stems_first_width_follows() -> None:
    spec = variant("s").spec
    assert spec.with_widths((92, 192, 384, 1280)).stem_widths == (64,)
    assert spec.with_widths((12, 24, 40, 64)).stem_widths == (12,)
    assert variant("cifar-s").spec.with_widths((20, 40, 80, 80)).stem_widths == (20, 20)


def test_a_width_per_stream_and_one_more() -> None:
    with pytest.raises(SpecError, match=r"4 for this network, not 3: 8,16,24"):
        tiny_spec().with_widths((8, 16, 24))


def test_an_ensemble_is_told_by_its_members() -> None:
    spec = tiny_spec(stream_widths=(8,), stream_blocks=(2,), members=3)
    assert spec.streams == 3
    assert (spec.stride, spec.widths) == (8, (8, 32)), "those of a member"
    assert spec.with_widths((12, 16)).members == 3
    assert spec.with_streams(3) == spec
    with pytest.raises(SpecError, match=r"each of its 3 members .* not 2 streams"):
        spec.with_streams(2)


@pytest.mark.parametrize("streams", [0, 5, -1])
def test_streams_out_of_range(streams: int) -> None:
    with pytest.raises(SpecError, match=f"1 to 4 streams, not {streams}"):
        tiny_spec().with_streams(streams)


def test_no_room_for_another_stream() -> None:
    with pytest.raises(SpecError, match="at least one block"):
        replace(tiny_spec(), stream_blocks=(1, 1, 1)).with_streams(4)


@given(specs(ensembles=False))
def test_fewer_streams_keep_depth_and_size(spec: ParNetSpec) -> None:
    last = spec.streams
    for streams in range(1, last):
        fewer = spec.with_streams(streams)
        assert fewer.stream_widths == spec.stream_widths[-streams:]
        assert fewer.stride == spec.stride
        assert depth(fewer) <= depth(spec), "the finer, longer paths may have gone"
    assert spec.with_streams(last) == spec


@pytest.mark.parametrize("name", ["s", "m", "l", "xl"])
@pytest.mark.parametrize(("wanted", "blocks"), [(9, (1, 2, 2)), (12, (4, 5, 5)), (15, (7, 8, 8))])
def test_the_papers_depths(name: str, wanted: int, blocks: tuple[int, ...]) -> None:
    spec = variant(name).spec
    changed = spec.with_depth(wanted)
    assert depth(changed) == wanted
    assert changed == replace(spec, stream_blocks=blocks)


def test_no_room_for_a_lesser_depth() -> None:
    spec = variant("m").spec
    assert spec.with_depth(9).stream_blocks == (1, 2, 2)
    with pytest.raises(SpecError, match=r"a depth of at least 9 \(it is 12 .*, not 8"):
        spec.with_depth(8)


@given(specs(), integers(0, 5))
def test_any_depth_that_leaves_blocks(spec: ParNetSpec, more: int) -> None:
    deeper = spec.with_depth(depth(spec) + more)
    assert depth(deeper) == depth(spec) + more
    assert deeper.with_depth(depth(spec)) == spec
