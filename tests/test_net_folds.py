"""Every pure fold against the torch operators that it replaces, in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import randomise
from hypothesis import given
from hypothesis import strategies as st
from parity import relative_error
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from parnet_deploy.net.folds import (
    bn_affine,
    fold_conv_bn,
    identity_3x3,
    mean_of_linears,
    pad_1x1,
    pad_pooled_1x1,
    permute_inputs,
    ungroup_1x1,
)

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 6)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_norm(channels: int, seed: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=eps).double().eval()
    randomise(norm, seed)
    return norm


@given(channels=SIZES, size=SIZES, eps=st.sampled_from([1e-5, 1e-3, 0.1]), seed=SEEDS)
def test_bn_affine(channels: int, size: int, eps: float, seed: int) -> None:
    norm = random_norm(channels, seed, eps)
    x = noise(seed, 2, channels, size, size)
    scale, shift = bn_affine(norm)
    assert scale.dtype == shift.dtype == torch.float64
    folded = x * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(folded, norm(x), rtol=1e-12, atol=1e-12)


@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    size=st.integers(3, 7),
    seed=SEEDS,
)
def test_fold_conv_bn(
    groups: int, inputs: int, outputs: int, kernel: int, stride: int, size: int, seed: int
) -> None:
    weight = noise(seed, outputs * groups, inputs, kernel, kernel)
    norm = random_norm(outputs * groups, seed)
    x = noise(seed + 1, 2, inputs * groups, size, size + 1)

    def conv(weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(x, weight, bias, stride=stride, padding=kernel // 2, groups=groups)

    torch.testing.assert_close(
        conv(*fold_conv_bn(weight, norm)), norm(conv(weight, None)), rtol=1e-12, atol=1e-12
    )


@given(inputs=SIZES, outputs=SIZES, height=SIZES, width=SIZES, seed=SEEDS)
def test_pad_1x1(inputs: int, outputs: int, height: int, width: int, seed: int) -> None:
    weight = noise(seed, outputs, inputs, 1, 1)
    x = noise(seed + 1, 1, inputs, height, width)
    torch.testing.assert_close(conv2d(x, pad_1x1(weight), padding=1), conv2d(x, weight))


@given(inputs=SIZES, outputs=SIZES, height=SIZES, width=SIZES, seed=SEEDS)
def test_pad_pooled_1x1(inputs: int, outputs: int, height: int, width: int, seed: int) -> None:
    weight = noise(seed, outputs, inputs, 1, 1)
    x = noise(seed + 1, 1, inputs, 2 * height, 2 * width)
    folded = conv2d(x, pad_pooled_1x1(weight), stride=2, padding=1)
    torch.testing.assert_close(folded, conv2d(avg_pool2d(x, 2), weight))


@given(channels=SIZES, size=SIZES, seed=SEEDS)
def test_identity_3x3(channels: int, size: int, seed: int) -> None:
    scale, x = noise(seed, channels), noise(seed + 1, 2, channels, size, size)
    folded = conv2d(x, identity_3x3(scale), padding=1)
    torch.testing.assert_close(folded, x * scale[:, None, None])


@given(groups=st.integers(1, 3), inputs=SIZES, outputs=SIZES, seed=SEEDS)
def test_ungroup_1x1(groups: int, inputs: int, outputs: int, seed: int) -> None:
    weight = noise(seed, outputs * groups, inputs, 1, 1)
    x = noise(seed + 1, 2, inputs * groups, 1, 1)
    dense = ungroup_1x1(weight, groups)
    assert dense.shape == (outputs * groups, inputs * groups)
    torch.testing.assert_close(
        nn.functional.linear(x.flatten(1), dense), conv2d(x, weight, groups=groups).flatten(1)
    )


@given(groups=st.integers(1, 3), inputs=SIZES, outputs=SIZES, seed=SEEDS, data=st.data())
def test_permute_inputs(
    groups: int, inputs: int, outputs: int, seed: int, data: st.DataObject
) -> None:
    weight = noise(seed, outputs * groups, inputs, 3, 3)
    x = noise(seed + 1, 1, inputs * groups, 4, 4)
    order = torch.tensor(
        [
            group * inputs + index
            for group in range(groups)
            for index in data.draw(st.permutations(range(inputs)))
        ]
    )
    permuted = permute_inputs(weight, order, groups)
    torch.testing.assert_close(
        conv2d(x[:, order], permuted, groups=groups), conv2d(x, weight, groups=groups)
    )


def test_no_permutation_of_weights_moves_a_channel_into_another_group() -> None:
    with pytest.raises(ValueError, match="across its groups"):
        permute_inputs(noise(0, 4, 2, 1, 1), torch.tensor([0, 2, 1, 3]), groups=2)


def test_a_normalisation_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="running statistics"):
        bn_affine(nn.BatchNorm2d(3, track_running_stats=False))


def test_folds_of_float32_weights_are_computed_in_float64() -> None:
    """The result is nearer to the exact one than float32 arithmetic comes."""
    weight = noise(0, 4, 3, 1, 1).float()
    norm = random_norm(4, 0).float()
    folded, shift = fold_conv_bn(weight, norm)
    exact, exact_shift = fold_conv_bn(weight.double(), norm.double())
    assert folded.dtype == torch.float64
    assert relative_error(folded, exact) < 1e-15
    assert relative_error(shift, exact_shift) < 1e-15


@given(members=st.integers(1, 4), channels=SIZES, out=SIZES, seed=SEEDS)
def test_mean_of_linears(members: int, channels: int, out: int, seed: int) -> None:
    torch.manual_seed(seed)
    linears = [nn.Linear(channels + member, out).double() for member in range(members)]
    features = [noise(seed + index, 3, linear.in_features) for index, linear in enumerate(linears)]
    weight, bias = mean_of_linears(linears)
    expected = sum(linear(x) for linear, x in zip(linears, features, strict=True)) / members
    actual = nn.functional.linear(torch.cat(features, 1), weight, bias)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
