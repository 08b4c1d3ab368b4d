"""Specs and forms, small enough to run: drawn by Hypothesis, and of every variant's shape."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from hypothesis import strategies as st

from parnet_deploy.spec import VARIANTS, DeployForm, ParNetSpec, StemMode

FORMS = [
    DeployForm(identity_bn=identity, squeeze=squeeze, join=join)
    for identity, squeeze, join in itertools.product(
        ("keep", "fold"), ("conv", "gemm", "mixed"), ("view", "concat")
    )
] + [
    DeployForm(identity_bn=identity, squeeze="gemm", layout="nhwc") for identity in ("keep", "fold")
]


def narrow(spec: ParNetSpec) -> ParNetSpec:
    """A network of the same blocks, so narrow that it is quick."""
    streams = len(spec.stream_widths)
    return replace(spec.with_widths((*(8, 16, 24, 24)[:streams], 32)), classes=11)


def _shapes() -> dict[str, ParNetSpec]:
    shapes = {replace(narrow(v.spec), name="-", dropout=0.0): n for n, v in VARIANTS.items()}
    return {name: narrow(VARIANTS[name].spec) for name in shapes.values()}


SHAPES = _shapes()
"""One narrow network of every shape that variants have, by the name of one of these."""


def small_size(spec: ParNetSpec) -> tuple[int, int]:
    """A size of images that is quick, and not square."""
    return (2 * spec.stride, 3 * spec.stride) if spec.stride == 32 else (16, 24)


def stem_modes(spec: ParNetSpec) -> tuple[StemMode, ...]:
    """The ways in which a network can be split: an ensemble's members share no stem."""
    return ("replicate", "share") if spec.members == 1 else ("replicate",)


@st.composite
def specs(draw: st.DrawFn, *, ensembles: bool = True) -> ParNetSpec:
    """Any ParNet of 1 to 4 narrow streams, of either kind of last block, on images of any shape."""
    streams = draw(st.integers(1, 4))
    members = draw(st.integers(1, 3)) if streams == 1 and ensembles else 1
    stem = draw(st.lists(st.sampled_from([2, 4, 5]), max_size=2))
    strides = draw(st.lists(st.integers(1, 2), min_size=len(stem) + 1, max_size=len(stem) + 1))
    first = draw(st.integers(2, 6))
    others = draw(st.lists(st.sampled_from([4, 8, 12]), min_size=streams - 1, max_size=streams - 1))
    last = draw(st.sampled_from(["downsample", "pointwise"]))
    last_stride = 1 if last == "pointwise" else draw(st.integers(1, 2))
    stride = math.prod(strides) * 2 ** (streams - 1) * last_stride
    times = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    return ParNetSpec(
        name="any",
        stem_widths=tuple(stem),
        stem_strides=tuple(strides),
        stream_widths=(first, *others),
        stream_blocks=tuple(draw(st.lists(st.integers(1, 2), min_size=streams, max_size=streams))),
        last=last,
        last_width=draw(st.sampled_from([4, 7, 8])),
        last_stride=last_stride,
        activation=draw(st.sampled_from(["silu", "relu"])),
        squeeze=draw(st.booleans()),
        classes=draw(st.integers(1, 9)),
        image_size=(stride * times[0], stride * times[1]),
        dropout=draw(st.sampled_from([0.0, 0.2])),
        conv_dropout=draw(st.sampled_from([0.0, 0.2])),
        members=members,
        bn_eps=draw(st.sampled_from([1e-5, 1e-3])),
    )
