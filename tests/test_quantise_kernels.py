"""Kernels: what quantising does to each branch, and that the branches are the folded kernel's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SHAPES, specs

from parnet_deploy.export.kernels import block_kernels
from parnet_deploy.net import fuse, initialise
from parnet_deploy.quantise.kernels import (
    BlockKernels,
    block_noise,
    decibels,
    kernel_noise,
    requantised,
)
from parnet_deploy.spec import Array, ParNetSpec
from parnet_deploy.spec.quantisation import LIMITS, QuantisedType

KINDS: tuple[QuantisedType, ...] = ("int8", "float8_e4m3fn")


def kernels_of(spec: ParNetSpec) -> tuple[list[BlockKernels], dict[str, Array]]:
    """Branch by branch, and those of the fused network by the block's name."""
    model = initialise(spec, seed=1)
    randomise(model, 1)
    fused = fuse(model.double())
    folded = {
        block.name: fused.blocks[block.name].conv.weight.numpy()
        for block in model.layout
        if block.kind != "head"
    }
    return list(block_kernels(model)), folded


@pytest.mark.parametrize("shape", SHAPES)
def test_the_branches_are_those_of_the_kernel_that_is_deployed(shape: str) -> None:
    spec = SHAPES[shape]
    found, folded = kernels_of(spec)
    assert [each.block for each in found] == list(folded)
    for each in found:
        np.testing.assert_allclose(each.folded, folded[each.block], rtol=1e-12)
        if each.dense is None:
            assert each.folded is each.pointwise
            continue
        rest = each.folded - each.dense - each.pointwise
        skip = "block" in each.block and not spec.squeeze  # the identity is folded in, too
        assert (np.abs(rest).max() > 0.1) == skip
        rows, columns = (np.abs(rest).max(axis=axes) for axes in ((1, 2, 3), (0, 2, 3)))
        assert not skip or (rows.min() > 0 and columns.min() > 0)


@settings(max_examples=10)
@given(specs())
def test_the_branches_are_there_whatever_the_network(spec: ParNetSpec) -> None:
    found, folded = kernels_of(spec)
    for each in found:
        assert each.folded.dtype == np.float64
        if each.dense is not None and spec.squeeze:
            total = each.dense + each.pointwise
            np.testing.assert_allclose(total, folded[each.block], rtol=1e-9, atol=1e-12)


def test_the_network_is_left_as_it_is() -> None:
    model = initialise(next(iter(SHAPES.values())), seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(block_kernels(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_kernels_that_do_not_belong_together_are_refused() -> None:
    one, other = np.zeros((2, 3, 3, 3)), np.zeros((2, 4, 3, 3))
    with pytest.raises(ValueError, match=r"a kernel of a is \(2, 4, 3, 3\)"):
        BlockKernels(block="a", dense=other, pointwise=one, folded=one)


def test_one_great_weight_costs_what_it_must() -> None:
    """Of 3x3 weights of 1 and one of 127: with steps of 1 nothing is lost, of 2 all small ones."""
    kernel = np.ones((2, 1, 3, 3))
    kernel[1, 0, 1, 1] = 127
    assert kernel_noise(kernel, "int8").per_tensor is None
    kernel[1, 0, 1, 1] = 508  # steps of 4: a weight of 1 is 0.25 steps, so 0
    found = kernel_noise(kernel, "int8")
    assert found.greatest == 508
    assert found.spread == 508
    signal = 508**2 + 17
    assert found.per_tensor == pytest.approx(10 * np.log10(signal / 17))
    assert found.per_channel == pytest.approx(10 * np.log10(signal / 8))


@given(
    st.integers(1, 6), st.integers(1, 30), st.sampled_from(KINDS), st.booleans(), st.integers(0, 99)
)
def test_no_weight_moves_by_more_than_its_step(
    channels: int, size: int, kind: QuantisedType, per_channel: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal((channels, size)) * 10.0 ** rng.integers(-6, 6, (channels, 1))
    quantised = requantised(kernel, kind, per_channel=per_channel)
    greatest = np.abs(kernel).max(axis=1 if per_channel else None, keepdims=True)
    if kind == "int8":
        allowed = greatest / 254
    else:  # half a step: 2^-4 of the number, or of the least normal number, 2^-6, below it
        allowed = np.maximum(np.abs(kernel), greatest / 448 * 2.0**-6) * 2.0**-4
    # What is allowed besides: scales are float32.
    assert (np.abs(quantised - kernel) <= allowed + 1e-7 * greatest).all()
    assert np.isfinite(quantised).all()
    again = requantised(quantised, kind, per_channel=per_channel)
    np.testing.assert_allclose(again, quantised, rtol=1e-6)
    assert np.abs(quantised).max() <= np.abs(kernel).max() * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_channel_and_a_dead_kernel_lose_nothing(kind: QuantisedType) -> None:
    dead = kernel_noise(np.zeros((3, 2, 3, 3)), kind)
    assert (dead.greatest, dead.spread, dead.per_tensor, dead.per_channel) == (0, 1, None, None)
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    kernel[1] = 0
    found = kernel_noise(kernel, kind)
    assert found.spread < 10
    assert found.per_channel is not None


def test_a_scale_for_each_channel_pays_where_ranges_differ(rng: np.random.Generator) -> None:
    kernel = rng.standard_normal((8, 4, 3, 3)) * np.geomspace(1, 1000, 8)[:, None, None, None]
    found = kernel_noise(kernel, "int8")
    assert found.per_channel is not None
    assert found.per_tensor is not None
    per_row = [kernel_noise(row[None], "int8").per_tensor for row in kernel]
    assert min(row for row in per_row if row is not None) > 35
    assert max(LIMITS["int8"]) == 127
    weakest = decibels(kernel[0], requantised(kernel, "int8", per_channel=False)[0])
    assert weakest == pytest.approx(0, abs=0.1)  # all of the narrowest channel becomes 0


def test_ratios_that_are_no_numbers(rng: np.random.Generator) -> None:
    values = rng.standard_normal(5)
    assert decibels(values, values) is None
    assert decibels(np.zeros(5), values) == -300
    assert decibels(values, 2 * values) == pytest.approx(0)


def test_every_block_is_measured() -> None:
    found, _ = kernels_of(next(iter(SHAPES.values())))
    measured = block_noise(iter(found), "int8")
    assert [each.block for each in measured] == [each.block for each in found]
    for each, kernels in zip(measured, found, strict=True):
        assert each.folded == kernel_noise(kernels.folded, "int8")
        assert each.pointwise == kernel_noise(kernels.pointwise, "int8")
