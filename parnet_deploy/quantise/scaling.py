"""What makes a tensor's channels, and what reads them, multiplied and divided: where that is exact.

A `Scaling` is found first and applied later, so that a graph is left as it is where one reader is
of a kind that a factor cannot be taken out of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.spec import Array

Change = Callable[[Array, Array], Array]
"""A constant's new values, from its old ones and the factors (C,)."""

_MOVES = ("Reshape", "Transpose", "Concat", "Split")


@dataclass(kw_only=True)
class Scaling:
    """Constants to change so that a tensor's channels are multiplied, and nothing else.

    Attributes:
        kernel: the quantised convolution that reads it, the first of them.
    """

    kernel: gs.Node
    changes: list[tuple[gs.Constant, Change]] = field(default_factory=list)

    def apply(self, factors: Array) -> None:
        """Change the graph that it was found in.

        Args:
            factors: (C,) positive.
        """
        for constant, change in self.changes:
            constant.values = change(constant.values, factors).astype(constant.values.dtype)


class _NotExactError(Exception):
    """There is something that a factor cannot be taken out of."""


def find_scaling(graph: gs.Graph, name: str) -> Scaling | None:
    """How a tensor's channels can be scaled, or None where that is not exact.

    Args:
        graph: in float32, in deploy form; the scaling's constants are its own.
        name: of what a layer reads: what a fusion joined, or a block's value.
    """
    tensor = graph.tensors()[name]
    kernels = [node for node in tensor.outputs if node.op == "Conv"]
    if not kernels or not tensor.inputs or tensor in graph.outputs:
        return None
    scaling = Scaling(kernel=kernels[0])
    try:
        if tensor.inputs[0].op in _MOVES and (norms := _joined_norms(tensor)):
            _write_norms(scaling, tensor, norms)
        else:
            _write(scaling, tensor, axis=1, active=False)
        for reader in tensor.outputs:
            _read(scaling, tensor, reader)
    except _NotExactError:
        return None
    return scaling


def _add(scaling: Scaling, constant: gs.Tensor, change: Change) -> None:
    if not isinstance(constant, gs.Constant) or len(constant.outputs) != 1:
        raise _NotExactError  # shared: it would be changed elsewhere, too
    scaling.changes.append((constant, change))


def _along(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(-1 if index == axis else 1 for index in range(ndim))


def _times(axis: int) -> Change:
    return lambda old, factors: old * factors.reshape(_along(axis, old.ndim))


def _over(axis: int) -> Change:
    return lambda old, factors: old / factors.reshape(_along(axis, old.ndim))


def _columns_over(groups: int) -> Change:
    """A kernel (O, I / groups, ...) that reads channels (I,) multiplied by factors."""

    def change(old: Array, factors: Array) -> Array:
        parts = np.split(old, groups)
        each = np.split(factors, groups)
        divided = [_over(1)(part, own) for part, own in zip(parts, each, strict=True)]
        return np.concatenate(divided)

    return change


def _read(scaling: Scaling, tensor: gs.Variable, node: gs.Node) -> None:
    """Let a reader divide by the factors."""
    if node.op == "Conv" and node.inputs[0] is tensor:
        _add(scaling, node.inputs[1], _columns_over(node.attrs.get("group", 1)))
    elif node.op == "BatchNormalization" and node.inputs[0] is tensor:
        _add(scaling, node.inputs[1], _over(0))
        _add(scaling, node.inputs[3], _times(0))
    elif node.op in ("GlobalAveragePool", "Flatten"):
        for reader in node.outputs[0].outputs:
            _read(scaling, node.outputs[0], reader)
    elif node.op == "Gemm" and node.inputs[0] is tensor and node.attrs.get("transB"):
        _add(scaling, node.inputs[1], _over(1))
    elif node.op == "Mul" and (factor := _gate_factor(node, tensor)) is not None:
        _add(scaling, factor, _over(1))
    else:
        raise _NotExactError


def _gate_factor(node: gs.Node, tensor: gs.Variable) -> gs.Constant | None:
    """The per-channel constant that a gate was multiplied by before it is multiplied with x."""
    others = [value for value in node.inputs if value is not tensor]
    if len(others) != 1 or not others[0].inputs or others[0].inputs[0].op != "Mul":
        return None
    if len(others[0].outputs) != 1:
        return None
    constants = [value for value in others[0].inputs[0].inputs if isinstance(value, gs.Constant)]
    return constants[0] if len(constants) == 1 and constants[0].values.ndim == 4 else None


def _write(scaling: Scaling, tensor: gs.Variable, *, axis: int, active: bool) -> None:
    """Let what makes a tensor multiply it by the factors.

    Args:
        scaling: what is added to.
        tensor: what is to be multiplied.
        axis: of its channels.
        active: whether a ReLU was passed: only in front of one is what follows a block's sum.
    """
    if isinstance(tensor, gs.Constant) or not tensor.inputs:
        raise _NotExactError
    node = tensor.inputs[0]
    if node.op == "Relu":
        _write(scaling, _only(node.inputs[0]), axis=axis, active=True)
    elif node.op == "Transpose":
        moved = node.attrs["perm"][axis]
        _write(scaling, _only(node.inputs[0]), axis=moved, active=active)
    elif active and node.op == "Add":
        for value in node.inputs:
            _write(scaling, _only(value), axis=axis, active=True)
    elif active and node.op == "Mul":
        _write_product(scaling, node, axis)
    elif active and node.op == "Conv":
        for constant in node.inputs[1:]:
            _add(scaling, constant, _times(0))
    else:
        raise _NotExactError


def _only(tensor: gs.Variable) -> gs.Variable:
    """A tensor that nothing else reads."""
    if len(tensor.outputs) > 1:
        raise _NotExactError
    return tensor


def _write_product(scaling: Scaling, node: gs.Node, axis: int) -> None:
    """A value times its gate, or a gate times a constant: one of the two is multiplied."""
    constants = [value for value in node.inputs if isinstance(value, gs.Constant)]
    if constants:
        _add(scaling, constants[0], _times(1))
        return
    gates = [value for value in node.inputs if _is_gate(value)]
    if len(gates) != 1:
        raise _NotExactError
    (value,) = (value for value in node.inputs if value is not gates[0])
    maker = gates[0].inputs[0]
    if maker.op == "Mul":  # the gate times a constant: x itself is what the block reads
        constants = [each for each in maker.inputs if isinstance(each, gs.Constant)]
        _add(scaling, constants[0], _times(1))
    elif value.inputs and value.inputs[0].op == "BatchNormalization":
        _write_identity(scaling, value, node)
    else:
        _write(scaling, _only(value), axis=axis, active=True)


def _write_identity(scaling: Scaling, value: gs.Variable, product: gs.Node) -> None:
    """A normalised identity: what squeezes it reads it multiplied, too, and divides again."""
    norm = value.inputs[0]
    _add(scaling, norm.inputs[1], _times(0))
    _add(scaling, norm.inputs[2], _times(0))
    for reader in value.outputs:
        if reader is not product:
            _read(scaling, value, reader)


def _is_gate(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a squeeze's, (N, C, 1, 1), perhaps times a constant."""
    while tensor.inputs and tensor.inputs[0].op in ("Transpose", "Unsqueeze", "Mul", "Sigmoid"):
        node = tensor.inputs[0]
        if node.op == "Sigmoid":
            below = node.inputs[0].inputs
            return bool(below) and (below[0].op == "Gemm" or ".squeeze" in below[0].name)
        tensor = next(value for value in node.inputs if not isinstance(value, gs.Constant))
    return False


def _joined_norms(tensor: gs.Variable) -> list[gs.Node]:
    """The batch normalisations whose outputs a tensor is joined of; none where others are."""
    norms: dict[int, gs.Node] = {}
    waiting, moved = [tensor], {id(tensor)}
    while waiting:
        value = waiting.pop()
        if len(value.inputs) != 1:
            return []
        node = value.inputs[0]
        if value is not tensor and any(reader.op not in _MOVES for reader in value.outputs):
            return []
        if node.op == "BatchNormalization":
            norms[id(node)] = node
            continue
        if node.op not in _MOVES:
            return []
        for read in node.inputs:
            if not isinstance(read, gs.Constant) and id(read) not in moved:
                moved.add(id(read))
                waiting.append(read)
    return list(norms.values())


def _write_norms(scaling: Scaling, tensor: gs.Variable, norms: Sequence[gs.Node]) -> None:
    """Let the batch normalisations multiply, each channel by the factor of where it comes to."""
    for norm, own in zip(norms, _places(tensor, norms), strict=True):
        for index in (1, 2):
            _add(scaling, norm.inputs[index], _times_own(own))


def _times_own(own: Array) -> Change:
    return lambda old, factors: old * factors[own]


def _places(tensor: gs.Variable, norms: Sequence[gs.Node]) -> list[Array]:
    """Of each normalisation's channels, which channel of the joined tensor it becomes.

    The operators between move values and do nothing else: so they are carried out on the
    channels' numbers.
    """
    known: dict[int, Array] = {}
    first = 0
    for norm in norms:
        _, channels, height, width = norm.outputs[0].shape
        numbers = np.arange(first, first + channels).reshape(1, -1, 1, 1)
        known[id(norm.outputs[0])] = np.broadcast_to(numbers, (1, channels, height, width))
        first += channels
    joined = _moved(tensor, known)
    numbers = joined[0, :, 0, 0]
    if (joined != numbers[:, None, None]).any() or sorted(numbers) != list(range(first)):
        raise _NotExactError  # channels are mixed, left out, or used twice
    ends = np.cumsum([norm.outputs[0].shape[1] for norm in norms])[:-1]
    return np.split(np.argsort(numbers), ends)


def _moved(tensor: gs.Variable, known: Mapping[int, Array]) -> Array:
    """What operators that only move values make of arrays."""
    if id(tensor) in known:
        return known[id(tensor)]
    (node,) = tensor.inputs
    values = [_moved(x, known) for x in node.inputs if not isinstance(x, gs.Constant)]
    if node.op == "Concat":
        return np.concatenate(values, axis=node.attrs["axis"])
    (value,) = values
    if node.op == "Transpose":
        return value.transpose(node.attrs["perm"])
    if node.op == "Split":
        edges = np.cumsum(node.inputs[1].values)[:-1]
        place = next(index for index, given in enumerate(node.outputs) if given is tensor)
        return np.split(value, edges, axis=node.attrs["axis"])[place]
    asked = node.inputs[1].values.tolist()
    return value.reshape([value.shape[i] if size == 0 else size for i, size in enumerate(asked)])
