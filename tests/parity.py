"""How far two networks are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from parnet_deploy.net import BlockGraph, DeployParNet
from parnet_deploy.spec.layout import stored_order


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Greatest difference, relative to the greatest absolute value expected; NaN is infinite.

    Where all of what is expected is (nearly) zero, as a small map behind a ReLU may be, it is
    relative to 1e-6 instead.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return float(torch.nan_to_num(error, nan=torch.inf))


def training_values(model: BlockGraph, images: Tensor) -> Mapping[str, Tensor]:
    """Every value of a network, in the training form's order of channels."""
    with torch.inference_mode():
        values = model.values(images)
    if isinstance(model, DeployParNet):
        for block in model.layout:
            if order := stored_order(block):
                values[block.name] = values[block.name][:, list(order)]
    return values


def greatest_error(actual: BlockGraph, expected: BlockGraph, images: Tensor) -> float:
    """Greatest relative error over the logits and every block's output."""
    got, want = training_values(actual, images), training_values(expected, images)
    assert got.keys() == want.keys()
    return max(relative_error(got[name], want[name]) for name in want)
