"""Fake quantisers, number by number, and the ranges that they are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import tiny_network
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import helper

from parnet_deploy.errors import SpecError
from parnet_deploy.lowering import weights
from parnet_deploy.quantise.histogram import Histogram
from parnet_deploy.quantise.ranges import quantiser
from parnet_deploy.spec import Array
from parnet_deploy.spec.quantisation import QuantisedType, Scheme
from parnet_deploy.spec.ranges import Range, spanning
from parnet_deploy.train.qat import ranges as qat_ranges
from parnet_deploy.train.qat.network import FakeQuantisedParNet
from parnet_deploy.train.qat.rounding import fake_quantise, fake_quantise_kernel
from tests.test_train_qat import EXACT, session_options


def test_the_gradient_passes_within_the_range_and_ends_beyond() -> None:
    x = torch.tensor([-3.0, -1.28, -0.4, 0.0, 0.3, 1.27, 1.3], requires_grad=True)
    scale, zero = torch.tensor(0.01), torch.tensor(0.0)
    fake_quantise(x, scale, zero, "int8").sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    x.grad = None
    fake_quantise(x, scale, torch.tensor(128.0), "uint8").sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]
    x.grad = None
    fake_quantise(x, torch.tensor(1 / 448), zero, "float8_e4m3fn").sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]


# -- numbers


@given(
    values=st.lists(st.floats(-200, 400, width=32), min_size=1, max_size=20),
    scale=st.floats(2**-10, 4, width=32),
    zero=st.integers(0, 255),
    kind=st.sampled_from(["int8", "uint8", "float8_e4m3fn"]),
)
def test_fake_quantised_values_are_those_of_onnx(
    values: list[float], scale: float, zero: int, kind: QuantisedType
) -> None:
    zero = zero if kind == "uint8" else 0
    found = fake_quantise(
        torch.tensor(values), torch.tensor(scale), torch.tensor(float(zero)), kind
    )
    x = np.array(values, np.float32)
    expected = reference(x, np.float32(scale), zero, kind)
    assert np.array_equal(found.numpy(), expected)


def reference(x: Array, scale: np.float32, zero: int, kind: QuantisedType) -> Array:
    """QuantizeLinear and DequantizeLinear, as onnx computes them."""
    element = {"int8": 3, "uint8": 2, "float8_e4m3fn": 17}[kind]
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
    back = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"])
    graph = helper.make_graph(
        [node, back],
        "one",
        [helper.make_tensor_value_info("x", 1, list(x.shape))],
        [helper.make_tensor_value_info("y", 1, list(x.shape))],
        [
            helper.make_tensor("scale", 1, [], [float(scale)]),
            helper.make_tensor("zero", element, [], [float(zero) if element == 17 else zero]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"x": x})[0]
    return result


@given(
    weight=st.integers(0, 10_000),
    kind=st.sampled_from(EXACT),
    base=st.sampled_from(["fp32", "fp16"]),
)
def test_fake_quantised_kernels_are_those_of_the_graph(
    weight: int, kind: Scheme, base: Any
) -> None:
    kernel = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(weight))
    kernel[2] = 0.0  # a channel of nothing
    kernel[3] *= 1e-4
    expected = weights.quantised(
        "w", kernel.numpy(), kind.weight, base=base, per_channel=True
    ).dequantised()
    found = fake_quantise_kernel(kernel, replace(kind, base=base))
    assert np.array_equal(found.numpy(), expected.astype(np.float32))


@given(low=st.floats(-1e4, 0, width=32), high=st.floats(0, 1e4, width=32))
@example(low=-357 * 2.0**-149, high=0.0)  # whose scale is the least float32: 357 steps, not 255
def test_training_and_export_have_the_same_quantisers(low: float, high: float) -> None:
    for scheme in EXACT:
        ranges = qat_ranges.TensorRanges(["x"], ["x"], scheme)
        ranges.low[0], ranges.high[0], ranges.seen[0] = low, high, 1
        scale, zero = ranges._quantiser(0)
        found = ranges.found()["x"]
        expected = spanning(found, scheme.activation)
        if found.greatest > 1e-20:
            seen = Histogram.of(np.array([low, high], np.float32))
            assert quantiser(seen, scheme.activation, "minmax") == expected, "found on images"
        assert (float(scale), int(zero)) == (expected.scale, expected.zero_point)
        assert float(ranges.eval()("x", torch.zeros(1))) == 0.0  # which is exact: padding is of it


# -- ranges


def test_a_range_is_the_mean_of_batches_until_it_stays() -> None:
    ranges = qat_ranges.TensorRanges(["x"], [], EXACT[0]).train()
    for high in (1.0, 2.0, 6.0):
        assert torch.equal(ranges("x", torch.tensor([high, -1.0])), torch.tensor([high, -1.0]))
    assert ranges.found()["x"] == Range(low=-1.0, high=3.0)
    ranges.moving = False
    ranges("x", torch.tensor([100.0]))
    ranges.eval().moving = True
    ranges("x", torch.tensor([100.0]))
    assert ranges.found()["x"] == Range(low=-1.0, high=3.0)
    ranges.train().seen.fill_(10_000)
    ranges("x", torch.tensor([103.0]))
    assert ranges.found()["x"].high == pytest.approx(3.0 + 100 * qat_ranges.LEAST_PART)
    assert ranges.found()["x"].low == pytest.approx(-1.0 * (1 - qat_ranges.LEAST_PART))


def test_ranges_move_in_the_first_part_of_a_training() -> None:
    network = FakeQuantisedParNet(tiny_network(), EXACT[0], observe=0.25)
    moving = []
    for step in range(8):
        network.begin_step(step / 8)
        moving.append(network.ranges.moving)
    assert moving == [True, True] + [False] * 6


@pytest.mark.parametrize(
    "ends", [(0.1, 1.0), (-1.0, -0.1), (float("nan"), 1.0), (0.0, float("inf"))]
)
def test_what_is_no_range(ends: tuple[float, float]) -> None:
    with pytest.raises(SpecError, match="a range is finite and 0 lies in it"):
        Range(low=ends[0], high=ends[1])
