"""A network in training form that computes as its quantised deploy form will."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from parnet_deploy.net import ParNet
from parnet_deploy.net.blocks import PointwiseBlock, RepBlock, global_average, interleave, shuffle
from parnet_deploy.net.fuse import fold_block
from parnet_deploy.spec import IMAGES
from parnet_deploy.spec.learned import LearnedRanges, convolved, joined, quantisable_tensors
from parnet_deploy.spec.quantisation import Calibration, Scheme
from parnet_deploy.train.qat.ranges import TensorRanges
from parnet_deploy.train.qat.rounding import fake_quantise_kernel


class FakeQuantisedParNet(nn.Module):
    """A ParNet, folded and then quantised in every step, as far as gradients can tell.

    What is quantised is what will be deployed: the kernel that a block's branches and their batch
    normalisations fold into (`net.fuse.fold_block`, in float64 as `fuse` does it), and the
    activations of the exported graph. Folding afterwards would add up roundings that no deployed
    network has. Batch normalisations keep their running statistics, and learn their weights and
    biases: with another batch's statistics another kernel would be quantised than is deployed.

    Scales are numbers of the scheme's base, as in the graph; what is between is float32.

    Attributes:
        network: the network, whose parameters are trained; it is not copied.
        scheme: what is quantised, and into what.
        observe: part of the training in which ranges move.
        ranges: of the activations.
        quantising: False computes the folded network in float32, and no range moves.
    """

    def __init__(self, network: ParNet, scheme: Scheme, *, observe: float = 1.0) -> None:
        """Take a trained network."""
        super().__init__()
        self.network = network
        self.scheme, self.observe = scheme, observe
        self.ranges = TensorRanges(
            quantisable_tensors(network.spec), quantisable_tensors(network.spec, scheme), scheme
        )
        self.quantising = True

    def begin_step(self, part: float) -> None:
        """Let the ranges move, or not.

        Args:
            part: of the training that is done, in [0, 1).
        """
        self.ranges.moving = part < self.observe

    def learned(self, calibration: Calibration) -> LearnedRanges:
        """What a checkpoint says of it.

        Args:
            calibration: what the ranges were found on.
        """
        return LearnedRanges(
            scheme=self.scheme, calibration=calibration, ranges=self.ranges.found()
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) float32, normalised -> logits (N, classes)."""
        values = {IMAGES: self._quantised(IMAGES, images)}
        for block in self.network.layout:
            module = self.network.blocks[block.name]
            inputs = [values[name] for name in block.inputs]
            if isinstance(module, PointwiseBlock):
                value = module.act(self._convolve(block.name, module, inputs[0]))
            elif isinstance(module, RepBlock):
                value = self._rep_block(block.name, module, inputs)
            else:
                value = module(*inputs)
            values[block.name] = self._quantised(block.name, value)
        return values[self.network.layout[-1].name]

    def _rep_block(self, name: str, block: RepBlock, inputs: list[Tensor]) -> Tensor:
        """The block's value, as its deploy form computes it."""
        x = inputs[0]
        if block.kind == "fusion":
            a, b = (
                _normalised(cast("nn.BatchNorm2d", norm), value)
                for norm, value in zip(block.norms, inputs, strict=True)
            )
            x = self._quantised(joined(name), interleave(a, b))
        y = self._convolve(name, block, x)
        if block.identity is None:
            y = block.dropout(y)
            if block.squeeze is not None:
                y = y * torch.sigmoid(block.squeeze(global_average(x)))  # the 2 is in the kernel
        else:
            identity = _normalised(block.identity, x)
            if block.squeeze is not None:
                gate = torch.sigmoid(block.squeeze(global_average(identity)))
                y = block.dropout(y) + identity * gate
            elif self.training and block.dropout.p > 0:
                y = block.dropout(y - identity) + identity  # which the kernel has in it
        y = block.act(y)
        return shuffle(y, block.groups) if block.groups > 1 else y

    def _convolve(self, name: str, block: PointwiseBlock | RepBlock, x: Tensor) -> Tensor:
        """The block's one convolution: folded, then quantised."""
        weight, bias = fold_block(block)
        kernel = weight.to(x.dtype)
        if self.quantising:
            kernel = fake_quantise_kernel(kernel, self.scheme)
        stride, groups = 1, 1
        if isinstance(block, RepBlock):
            stride, groups = block.stride, block.groups
        padding = kernel.shape[-1] // 2
        y = functional.conv2d(x, kernel, bias.to(x.dtype), stride, padding, groups=groups)
        return self._quantised(convolved(name), y)

    def _quantised(self, name: str, x: Tensor) -> Tensor:
        if not self.quantising or name not in self.ranges.numbers:
            return x
        quantised: Tensor = self.ranges(name, x)
        return quantised


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """A batch normalisation with its running statistics, in training, too."""
    return functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )
