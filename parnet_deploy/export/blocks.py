"""Every block as ONNX operators: one emitter per kind of module.

A block's last operator bears the block's name, so its value has the same name in torch and ONNX.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import onnx_graphsurgeon as gs
from torch import nn

from parnet_deploy.export.builder import GraphBuilder
from parnet_deploy.net.blocks import ConvBN, EnsembleHead, Head, PointwiseBlock, RepBlock
from parnet_deploy.net.deploy import DeployBlock, DeployFusion, DeployHead, Piece, Squeeze
from parnet_deploy.net.folds import ungroup_1x1
from parnet_deploy.spec import DeployForm
from parnet_deploy.spec.layout import LOGITS

Values = list[gs.Variable]


@singledispatch
def emit(
    module: nn.Module, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    """Add a block's operators to a graph.

    Args:
        module: the block, in deploy or training form.
        graph: the graph to add to.
        name: the block's name.
        inputs: the values it reads.
        form: which operators a squeeze becomes.

    Returns:
        The block's output.
    """
    raise TypeError(f"{type(module).__name__} cannot be exported")


@emit.register
def _deploy_block(
    module: DeployBlock, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    (x,) = inputs
    y = _conv(graph, f"{name}.conv", x, module.conv)
    if module.squeeze is None:
        return _activation(graph, name, y, module.act)
    skip = x
    if module.identity is not None:
        skip = _batch_norm(graph, f"{name}.identity", x, module.identity)
    has_skip = module.identity is not None or module.scale is not None
    gemm = form.squeeze == "gemm" or (form.squeeze == "mixed" and has_skip)
    gate = _gate(graph, name, skip, module.squeeze, gemm=gemm)
    if module.scale is not None and module.shift is not None:
        scale = graph.weight(f"{name}.scale", module.scale[None, :, None, None])
        shift = graph.weight(f"{name}.shift", module.shift[None, :, None, None])
        scaled = graph.node("Mul", f"{name}.gate.scaled", [gate, scale])
        gated = graph.node("Mul", f"{name}.gated", [x, scaled])
        y = graph.node("Add", f"{name}.sum", [y, gated])
        shifted = graph.node("Mul", f"{name}.gate.shift", [gate, shift])
        return _finish(graph, f"{name}.shifted", "Add", [y, shifted], name, module.act, form)
    if module.identity is not None:
        gated = graph.node("Mul", f"{name}.gated", [skip, gate])
        return _finish(graph, f"{name}.sum", "Add", [y, gated], name, module.act, form)
    return _finish(graph, f"{name}.gated", "Mul", [y, gate], name, module.act, form)


def _finish(
    graph: GraphBuilder,
    joint: str,
    op: str,
    inputs: Values,
    name: str,
    act: nn.Module,
    form: DeployForm,
) -> gs.Variable:
    """A block's last sum or product and its activation, in the form's layout.

    In nhwc, which is how TensorRT's convolutions read and write, it makes one kernel of this, of
    the next block's normalisation and of its pooling; in nchw two (docs/kernel-counts.md).
    """
    if form.layout == "nchw":
        return _activation(graph, name, graph.node(op, joint, inputs), act)
    turned = [
        graph.node("Transpose", f"{joint}.nhwc{index}", [value], perm=[0, 2, 3, 1])
        for index, value in enumerate(inputs)
    ]
    y = _activation(graph, f"{name}.nhwc", graph.node(op, joint, turned), act)
    return graph.node("Transpose", name, [y], perm=[0, 3, 1, 2])


@emit.register
def _deploy_fusion(
    module: DeployFusion, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    normed = [
        _batch_norm(graph, f"{name}.norm{index}", x, norm)
        for index, (x, norm) in enumerate(zip(inputs, module.norms, strict=True))
    ]
    join = _join_by_view if form.join == "view" else _join_by_slices
    joined = join(graph, name, normed, module.pieces)
    y = _conv(graph, f"{name}.conv", joined, module.conv)
    if module.squeeze is not None:
        gate = _gate(graph, name, joined, module.squeeze, gemm=form.squeeze != "conv")
        y = graph.node("Mul", f"{name}.gated", [y, gate])
    return _activation(graph, name, y, module.act)


def _join_by_slices(
    graph: GraphBuilder, name: str, normed: Values, pieces: tuple[Piece, ...]
) -> gs.Variable:
    """Split both inputs, and concatenate the slices group by group."""
    slices = []
    for index, x in enumerate(normed):
        own = [piece for piece in pieces if piece.input == index]
        edges = sorted({edge for piece in own for edge in (piece.start, piece.stop)})
        slices.append(graph.split(f"{name}.split{index}", x, edges))
    parts = [slices[piece.input][piece.start, piece.stop] for piece in pieces]
    return graph.node("Concat", f"{name}.join", parts, axis=1)


def _join_by_view(
    graph: GraphBuilder, name: str, normed: Values, pieces: tuple[Piece, ...]
) -> gs.Variable:
    """Give both inputs an axis of groups, and concatenate behind it.

    No Split: with one, TensorRT RTX puts the whole network into one stream and needs more kernels
    (docs/kernel-counts.md). An input that is a fusion's output, still unshuffled, holds each
    group's channels in two runs, which a transpose brings together.
    """
    height, width = normed[0].shape[2:]
    views = []
    for index, x in enumerate(normed):
        own = [piece for piece in pieces if piece.input == index]
        channels = sum(piece.stop - piece.start for piece in own)
        stem = f"{name}.view{index}"
        if len(own) > 2:
            quarters = [0, 2, 2, channels // 4, height * width]
            x = graph.reshape(f"{stem}.quarters", x, quarters)
            x = graph.node("Transpose", f"{stem}.swapped", [x], perm=[0, 2, 1, 3, 4])
        views.append(graph.reshape(stem, x, [0, 2, channels // 2, height, width]))
    joined = graph.node("Concat", f"{name}.views", views, axis=2)
    channels = sum(piece.stop - piece.start for piece in pieces)
    return graph.reshape(f"{name}.join", joined, [0, channels, height, width])


@emit.register
def _deploy_head(
    module: DeployHead, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    flat = _pooled(graph, name, inputs)
    features = flat[0] if len(flat) == 1 else graph.node("Concat", f"{name}.join", flat, axis=1)
    return graph.gemm(LOGITS, features, module.linear.weight, module.linear.bias)


def _pooled(graph: GraphBuilder, name: str, inputs: Values) -> Values:
    """Each input's global average, (N, C)."""
    flat = []
    for index, x in enumerate(inputs):
        number = index if len(inputs) > 1 else ""
        pooled = graph.node("GlobalAveragePool", f"{name}.pool{number}", [x])
        flat.append(graph.node("Flatten", f"{name}.flat{number}", [pooled], axis=1))
    return flat


@emit.register
def _ensemble_head(
    module: EnsembleHead, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    """The members' classifiers as they were trained, and their mean."""
    flat = _pooled(graph, name, inputs)
    logits = [
        graph.gemm(f"{name}.linear{index}", x, linear.weight, linear.bias)
        for index, (x, linear) in enumerate(zip(flat, module.classifiers, strict=True))
    ]
    return graph.node("Mean", LOGITS, logits)


@emit.register
def _training_head(
    module: Head, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    return _deploy_head(DeployHead(module.linear), graph, name, inputs, form)


@emit.register
def _training_pointwise(
    module: PointwiseBlock, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    y = _conv_bn(graph, f"{name}.pointwise", inputs[0], module.pointwise)
    return _activation(graph, name, y, module.act)


@emit.register
def _training_block(
    module: RepBlock, graph: GraphBuilder, name: str, inputs: Values, form: DeployForm
) -> gs.Variable:
    """The block as it was trained, unfused: what a plain export would give."""
    x = inputs[0]
    if module.kind == "fusion":
        x = _interleave(graph, name, module, inputs)
    small = x
    if module.stride == 2:
        small = graph.node("AveragePool", f"{name}.pool", [x], kernel_shape=[2, 2], strides=[2, 2])
    dense = _conv_bn(graph, f"{name}.dense", x, module.dense)
    pointwise = _conv_bn(graph, f"{name}.pointwise", small, module.pointwise)
    y = graph.node("Add", f"{name}.branches", [dense, pointwise])
    if module.identity is not None:
        skip = _batch_norm(graph, f"{name}.identity", x, module.identity)
        if module.squeeze is not None:
            gate = _gate(graph, name, skip, _dense_squeeze(module), gemm=False)
            skip = graph.node("Mul", f"{name}.gated", [skip, gate])
        y = graph.node("Add", f"{name}.sum", [y, skip])
    elif module.squeeze is not None:
        gate = _gate(graph, name, x, _dense_squeeze(module), gemm=False)
        two = graph.constant(f"{name}.two", np.array(2, np.float32))
        gate = graph.node("Mul", f"{name}.gate2", [gate, two])
        y = graph.node("Mul", f"{name}.gated", [y, gate])
    if module.groups == 1:
        return _activation(graph, name, y, module.act)
    active = _activation(graph, f"{name}.active", y, module.act)
    height, width = inputs[0].shape[2:]
    size = height // module.stride, width // module.stride
    return _shuffle(graph, name, active, module.groups, size)


def _dense_squeeze(module: RepBlock) -> Squeeze:
    if module.squeeze is None:
        raise ValueError("a block without a squeeze")
    return Squeeze(ungroup_1x1(module.squeeze.weight, module.groups), None)


def _interleave(graph: GraphBuilder, name: str, module: RepBlock, inputs: Values) -> gs.Variable:
    normed = [
        _batch_norm(graph, f"{name}.norm{index}", x, norm)
        for index, (x, norm) in enumerate(zip(inputs, module.norms, strict=True))
    ]
    joined = graph.node("Concat", f"{name}.concat", normed, axis=1)
    return _shuffle(graph, f"{name}.interleaved", joined, len(inputs), inputs[0].shape[2:])


def _shuffle(
    graph: GraphBuilder, name: str, x: gs.Variable, outer: int, size: tuple[int, int]
) -> gs.Variable:
    """Channels as (outer, C/outer) -> (C/outer, outer), and flat again: a channel shuffle."""
    y = graph.reshape(f"{name}.grouped", x, [0, outer, -1, *size])
    y = graph.node("Transpose", f"{name}.swapped", [y], perm=[0, 2, 1, 3, 4])
    return graph.reshape(name, y, [0, -1, *size])


def _conv(graph: GraphBuilder, name: str, x: gs.Variable, conv: nn.Module) -> gs.Variable:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{name} is a {type(conv).__name__}, not a convolution")
    stride = conv.stride[0]
    return graph.conv(name, x, conv.weight, conv.bias, stride=stride, groups=conv.groups)


def _conv_bn(graph: GraphBuilder, name: str, x: gs.Variable, pair: ConvBN) -> gs.Variable:
    y = _conv(graph, f"{name}.conv", x, pair.conv)
    return _batch_norm(graph, f"{name}.bn", y, pair.bn)


def _batch_norm(graph: GraphBuilder, name: str, x: gs.Variable, bn: nn.Module) -> gs.Variable:
    if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None or bn.running_var is None:
        raise TypeError(f"{name} is not a batch normalisation with running statistics")
    weights = {
        "weight": bn.weight,
        "bias": bn.bias,
        "mean": bn.running_mean,
        "var": bn.running_var,
    }
    constants = [graph.weight(f"{name}.{key}", value) for key, value in weights.items()]
    y = graph.node("BatchNormalization", name, [x, *constants], epsilon=bn.eps)
    y.shape = x.shape
    return y


def _gate(
    graph: GraphBuilder, name: str, x: gs.Variable, squeeze: Squeeze, *, gemm: bool
) -> gs.Variable:
    """``sigmoid(W gap(x) + b)``, (N, O, 1, 1)."""
    pooled = graph.node("GlobalAveragePool", f"{name}.squeeze.pool", [x])
    weight, bias = squeeze.weight, squeeze.bias
    if not gemm:
        y = graph.conv(f"{name}.squeeze", pooled, weight[:, :, None, None], bias)
        return graph.node("Sigmoid", f"{name}.gate", [y])
    flat = graph.node("Flatten", f"{name}.squeeze.flat", [pooled], axis=1)
    y = graph.gemm(f"{name}.squeeze", flat, weight, bias)
    # Here and not behind the Unsqueeze, or TensorRT RTX needs ten kernels more, in one stream.
    y = graph.node("Sigmoid", f"{name}.gate.flat", [y])
    axes = graph.constant(f"{name}.gate.axes", np.array([2, 3], np.int64))
    return graph.node("Unsqueeze", f"{name}.gate", [y, axes])


def _activation(graph: GraphBuilder, name: str, x: gs.Variable, act: nn.Module) -> gs.Variable:
    if isinstance(act, nn.ReLU):
        return graph.node("Relu", name, [x])
    if isinstance(act, nn.SiLU):
        return graph.node("Mul", name, [x, graph.node("Sigmoid", f"{name}.sigmoid", [x])])
    raise TypeError(f"{type(act).__name__} cannot be exported")
