"""Hypothesis strategies of specs and forms, small enough to run."""

from __future__ import annotations

import itertools
import math

from hypothesis import strategies as st

from parnet_deploy.spec import DeployForm, ParNetSpec

FORMS = [
    DeployForm(identity_bn=identity, squeeze=squeeze, join=join)
    for identity, squeeze, join in itertools.product(
        ("keep", "fold"), ("conv", "gemm", "mixed"), ("view", "concat")
    )
]


@st.composite
def specs(draw: st.DrawFn) -> ParNetSpec:
    """Any ParNet of 1 to 4 narrow streams, of either kind of last block, on images of any shape."""
    streams = draw(st.integers(1, 4))
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
        bn_eps=draw(st.sampled_from([1e-5, 1e-3])),
    )
