"""ParNet as one writes it with timm's layers: what our training form is measured against."""

from __future__ import annotations

import torch
from timm.layers import (
    BatchNormAct2d,
    ClassifierHead,
    ConvNormAct,
    EffectiveSEModule,
    SelectAdaptivePool2d,
    create_act_layer,
    create_conv2d,
)
from torch import Tensor, nn

from parnet_deploy.spec import IMAGES, BlockSpec, ParNetSpec, layout


class SkipExcitation(EffectiveSEModule):
    """timm's squeeze-and-excitation of one layer, with a sigmoid and without bias."""

    def __init__(self, channels: int) -> None:
        """Take the place of timm's own layer, which has a bias."""
        super().__init__(channels, gate_layer="sigmoid")
        self.fc = create_conv2d(channels, channels, 1, bias=False)


class Excitation(nn.Module):
    """The squeeze of a block whose output has other channels than its input."""

    def __init__(self, channels: int, out: int, groups: int) -> None:
        """`channels` of the input, `out` of what is multiplied."""
        super().__init__()
        self.pool = SelectAdaptivePool2d(pool_type="avg")
        self.fc = create_conv2d(channels, out, 1, groups=groups, bias=False)
        self.gate = create_act_layer("sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, O, 1, 1)."""
        gate: Tensor = self.gate(self.fc(self.pool(x)))
        return gate


class Block(nn.Module):
    """RepVGG-SSE, Downsampling or Fusion."""

    def __init__(self, block: BlockSpec, spec: ParNetSpec) -> None:
        """Make the block that `block` describes, of a network `spec`."""
        super().__init__()
        channels, out, groups = block.in_channels, block.out_channels, block.groups
        norm = {"eps": spec.bn_eps}
        inputs = block.inputs if block.kind == "fusion" else ()
        self.norms = nn.ModuleList(
            BatchNormAct2d(channels, apply_act=False, **norm) for _ in inputs
        )
        self.join = nn.ChannelShuffle(len(inputs) or 1)
        channels *= len(block.inputs)
        self.dense, self.pointwise = (
            ConvNormAct(
                channels, out, size, stride, groups=groups, apply_act=False, norm_kwargs=norm
            )
            for size, stride in ((3, block.stride), (1, 1))
        )
        self.pool = nn.AvgPool2d(2) if block.stride == 2 else nn.Identity()
        self.skip, self.excite = None, None
        if block.kind == "skip":
            excite = [SkipExcitation(out)] if spec.squeeze else []
            self.skip = nn.Sequential(BatchNormAct2d(out, apply_act=False, **norm), *excite)
        elif spec.squeeze:
            self.excite = Excitation(channels, out, groups)
        self.drop = nn.Dropout(spec.conv_dropout)
        self.act = create_act_layer(spec.activation, inplace=True)
        self.shuffle = nn.ChannelShuffle(groups)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C, H, W) each -> (N, O, H/stride, W/stride)."""
        x = inputs[0]
        if len(self.norms):
            normed = [norm(value) for norm, value in zip(self.norms, inputs, strict=True)]
            x = self.join(torch.cat(normed, 1))
        y = self.drop(self.dense(x) + self.pointwise(self.pool(x)))
        if self.skip is not None:
            y = y + self.skip(x)
        elif self.excite is not None:
            y = y * self.excite(x) * 2
        y = self.act(y)
        return self.shuffle(y) if self.shuffle.groups > 1 else y


class PlainParNet(nn.Module):
    """The network of a spec; its parameters stand in the order of ours, with the same shapes."""

    def __init__(self, spec: ParNetSpec) -> None:
        """Make the network with the layers' default initialisation."""
        super().__init__()
        self.layout = layout(spec)
        self.blocks = nn.ModuleList(_make(block, spec) for block in self.layout)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, classes)."""
        values = {IMAGES: images}
        for block, module in zip(self.layout, self.blocks, strict=True):
            values[block.name] = module(*(values[name] for name in block.inputs))
        return values[self.layout[-1].name]


def _make(block: BlockSpec, spec: ParNetSpec) -> nn.Module:
    if block.kind == "head":
        if len(block.inputs) > 1:
            raise ValueError("ensembles are not written with plain layers here")
        return ClassifierHead(block.in_channels, block.out_channels, drop_rate=spec.dropout)
    if block.kind == "pointwise":
        return ConvNormAct(
            block.in_channels,
            block.out_channels,
            act_layer=spec.activation,
            norm_kwargs={"eps": spec.bn_eps},
        )
    return Block(block, spec)
