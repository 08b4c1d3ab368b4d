"""The numbers that a checkpoint folds to, by the operator that reads them.

They are taken from the network in torch, and not from what wrote the graphs: a fault of the one
would be a fault of both.

Where channels' ranges were evened out (`quantise.equalise`), a graph has them multiplied and
divided by powers of two, channel by channel. Which is read off the graph's own kernels and
normalisations, block by block, and then done here: what makes a value multiplies by its factors and
all that reads it divides by the same ones, or the graph is not the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from parnet_deploy.bundle import ModelManifest
from parnet_deploy.net import DeployParNet
from parnet_deploy.net.deploy import DeployBlock, DeployFusion, DeployHead, Squeeze
from parnet_deploy.spec import LOGITS, PREPROCESSED, Array, BlockSpec, Preprocessing

WEIGHT, BIAS, SCALE, SHIFT = "weight", "bias", "scale", "shift"

Constants = dict[str, dict[str, Array]]
"""float64, by operator and role: WEIGHT and BIAS; SCALE and SHIFT of a normalisation."""

OCTAVES = 6
"""Greatest factor of a channel as a power of two: what is beyond was not evened out."""


def folded_constants(fused: DeployParNet, preprocessing: Preprocessing) -> Constants:
    """What a checkpoint folds to, by the operator's name in the float32 graph.

    Args:
        fused: its network, in the deploy form of the graphs.
        preprocessing: what the graph does to images where that is in it.
    """
    found: Constants = {}
    if preprocessing.in_graph:
        mean, std = (np.array(one, np.float64) for one in (preprocessing.mean, preprocessing.std))
        found["preprocess.scaled"] = {WEIGHT: 1 / (255 * std)}
        found[PREPROCESSED] = {WEIGHT: -mean / std}
    for block in fused.layout:
        module = fused.blocks[block.name]
        if isinstance(module, DeployHead):
            found[LOGITS] = _linear(module.linear.weight, module.linear.bias)
        elif isinstance(module, DeployBlock | DeployFusion):
            found |= _block(block.name, module)
    return found


def _block(name: str, module: DeployBlock | DeployFusion) -> Constants:
    found = {f"{name}.conv": _linear(module.conv.weight, module.conv.bias)}
    if isinstance(module.squeeze, Squeeze):
        found[f"{name}.squeeze"] = _linear(module.squeeze.weight, module.squeeze.bias)
    if isinstance(module, DeployFusion):
        for index, norm in enumerate(module.norms):
            found[f"{name}.norm{index}"] = _affine(norm)
        return found
    if module.identity is not None:
        found[f"{name}.identity"] = _affine(module.identity)
    if module.scale is not None and module.shift is not None:
        found[f"{name}.gate.scaled"] = {WEIGHT: _array(module.scale)}
        found[f"{name}.gate.shift"] = {WEIGHT: _array(module.shift)}
    return found


def evened_out(
    folded: Constants, graph: Constants, fused: DeployParNet, manifest: ModelManifest
) -> Constants:
    """What a checkpoint folds to, its channels scaled as a graph's are.

    Args:
        folded: what it folds to (`folded_constants`).
        graph: what the whole graph has; quantised kernels dequantised.
        fused: the network.
        manifest: of the model, whose quantisation says that channels were evened out.
    """
    quantisation = manifest.quantisation
    if quantisation is None or not quantisation.equalised:
        return folded
    result = {node: dict(roles) for node, roles in folded.items()}
    factors: dict[str, Array] = {}
    for block in fused.layout:
        module = fused.blocks[block.name]
        read = [factors.get(name, np.ones(1)) for name in block.inputs]
        if isinstance(module, DeployHead):
            roles = result[LOGITS]
            roles[WEIGHT] = roles[WEIGHT] / _of_channels(read, block, fused)
            continue
        if isinstance(module, DeployFusion):
            own = _even_norms(block.name, module, result, graph, read)
        else:
            own = read[0]
        _divide_columns(result[f"{block.name}.conv"], own, module)
        given = np.ones(1)
        if fused.spec.activation == "relu":  # through a SiLU no factor passes
            corrected = quantisation.bias_corrected
            given = _row_factors(result, graph, block.name, own, corrected=corrected)
        factors[block.name] = given
        _scale_block(block.name, result, own, given)
    return result


def _even_norms(
    name: str, module: DeployFusion, result: Constants, graph: Constants, read: Sequence[Array]
) -> Array:
    """Scale a fusion's normalisations as the graph's are; the factors of what is joined."""
    each = []
    for index, factor in enumerate(read):
        node = f"{name}.norm{index}"
        roles = result[node]
        roles[SCALE] = roles[SCALE] / factor
        told = _by_channel(result, graph, node, (SCALE, SHIFT), np.ones(1))  # one of them may be 0
        own = np.ones(len(roles[SCALE])) if told is None else _nearest(*told)
        roles[SCALE], roles[SHIFT] = roles[SCALE] * own, roles[SHIFT] * own
        each.append(own)
    return np.concatenate([each[p.input][p.start : p.stop] for p in module.pieces])


def _divide_columns(roles: dict[str, Array], factors: Array, module: nn.Module) -> None:
    """A kernel (O, I / groups, K, K) that reads channels (I,) multiplied by factors."""
    if factors.size == 1:
        return
    groups = module.conv.groups if isinstance(module, DeployBlock | DeployFusion) else 1
    rows = np.split(roles[WEIGHT], groups)
    parts = np.split(factors, groups)
    divided = [row / part[:, None, None] for row, part in zip(rows, parts, strict=True)]
    roles[WEIGHT] = np.concatenate(divided)


def _row_factors(
    result: Constants, graph: Constants, name: str, read: Array, *, corrected: bool
) -> Array:
    """By what a block's output channels are multiplied in a graph, (O,).

    Each is read off the first that tells: what is not quantised, the kernel (with its bias, unless
    that was corrected, which a channel of small weights would show most), and the bias.
    """
    conv, one = f"{name}.conv", np.ones(1)
    witnesses = [
        _by_channel(result, graph, f"{name}.identity", (SCALE,), read),
        _by_channel(result, graph, f"{name}.gate.scaled", (WEIGHT,), read),
        _by_channel(result, graph, conv, (WEIGHT,) if corrected else (WEIGHT, BIAS), one),
        _by_channel(result, graph, conv, (BIAS,), one),
    ]
    factors = np.ones(len(result[conv][WEIGHT]))
    unknown = np.ones(len(factors), bool)
    for want, got in filter(None, witnesses):
        told = unknown & ((want * got).sum(axis=1) > 0)
        factors[told] = _nearest(want, got)[told]
        unknown &= ~told
    return factors


def _by_channel(
    result: Constants, graph: Constants, node: str, roles: Sequence[str], read: Array
) -> tuple[Array, Array] | None:
    """An operator's constants, a row for each channel: the checkpoint's over `read`, and a graph's.

    None where one of the two has none of them in the other's shape.
    """
    want, got = result.get(node, {}), graph.get(node, {})
    shared = [
        role
        for role in roles
        if role in want and role in got and got[role].shape == want[role].shape
    ]
    if not shared:
        return None
    wanted, found = (
        np.concatenate([each[role].reshape(len(each[role]), -1) for role in shared], axis=1)
        for each in (want, got)
    )
    return wanted / read[:, None], found


def _scale_block(name: str, result: Constants, read: Array, given: Array) -> None:
    """Multiply all that makes a block's value, and divide what reads what was multiplied."""
    conv = result[f"{name}.conv"]
    conv[WEIGHT] = conv[WEIGHT] * given.reshape(-1, 1, 1, 1)
    if BIAS in conv:
        conv[BIAS] = conv[BIAS] * given
    pooled = read
    if identity := result.get(f"{name}.identity"):
        identity[SCALE] = identity[SCALE] * given / read
        identity[SHIFT] = identity[SHIFT] * given
        pooled = given  # its squeeze reads the normalised identity
    if scaled := result.get(f"{name}.gate.scaled"):
        scaled[WEIGHT] = scaled[WEIGHT] * given / read
        shift = result[f"{name}.gate.shift"]
        shift[WEIGHT] = shift[WEIGHT] * given
    if squeeze := result.get(f"{name}.squeeze"):
        squeeze[WEIGHT] = squeeze[WEIGHT] / pooled


def _of_channels(read: Sequence[Array], block: BlockSpec, fused: DeployParNet) -> Array:
    """Factors of all that a head reads, end to end."""
    widths = {each.name: each.out_channels for each in fused.layout}
    parts = zip(read, block.inputs, strict=True)
    return np.concatenate([np.broadcast_to(one, (widths[name],)) for one, name in parts])


def _nearest(given: Array, got: Array) -> Array:
    """The power of two of each row that brings it nearest to another, (R,); 1 where none does."""
    power, product = (given * given).sum(axis=1), (given * got).sum(axis=1)
    fits = (power > 0) & (product > 0)
    ratio = np.divide(product, power, out=np.ones_like(power), where=fits)
    octaves = np.rint(np.log2(ratio))
    result: Array = np.exp2(np.where(np.abs(octaves) <= OCTAVES, octaves, 0.0))
    return result


def _linear(weight: Tensor, bias: Tensor | None) -> dict[str, Array]:
    return {WEIGHT: _array(weight)} | ({} if bias is None else {BIAS: _array(bias)})


def _affine(norm: nn.Module) -> dict[str, Array]:
    """A normalisation by its running statistics as ``scale * x + shift``."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        raise TypeError(f"{type(norm).__name__} is no batch normalisation with statistics")
    variance = norm.running_var
    if variance is None:
        raise TypeError("a batch normalisation has a mean and no variance")
    return affine(
        _array(norm.weight),
        _array(norm.bias),
        _array(norm.running_mean),
        _array(variance),
        norm.eps,
    )


def affine(
    weight: Array, bias: Array, mean: Array, variance: Array, eps: float
) -> dict[str, Array]:
    """``weight * (x - mean) / sqrt(variance + eps) + bias`` as its scale and its shift."""
    scale = weight / np.sqrt(variance + eps)
    return {SCALE: scale, SHIFT: bias - mean * scale}


def _array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().double().numpy()
    return values


def kernels_of(folded: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """The kernels of the blocks' convolutions among them, by block."""
    suffix = ".conv"
    return {
        node.removesuffix(suffix): roles[WEIGHT]
        for node, roles in folded.items()
        if node.endswith(suffix)
    }
