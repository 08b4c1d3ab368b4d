"""A thin layer over onnx-graphsurgeon: one method per ONNX operator that a ParNet needs.

Reference: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from torch import Tensor

from parnet_deploy.spec import Array, TensorSpec
from parnet_deploy.spec.tensor import numpy_dtype


class GraphBuilder:
    """Collects nodes; every weight and every tensor gets the name it is known by."""

    def __init__(self, name: str, inputs: Sequence[TensorSpec], *, opset: int) -> None:
        """Begin a graph with these inputs."""
        self.graph = gs.Graph(name=name, opset=opset)
        self.values: dict[str, gs.Variable] = {spec.name: variable(spec) for spec in inputs}
        self.graph.inputs = list(self.values.values())

    def finish(self, outputs: Sequence[TensorSpec]) -> gs.Graph:
        """Declare the outputs, sort, and give the graph."""
        for spec in outputs:
            declare(self.values[spec.name], spec)
        self.graph.outputs = [self.values[spec.name] for spec in outputs]
        return self.graph.cleanup().toposort()

    def node(self, op: str, name: str, inputs: Sequence[gs.Tensor], **attrs: Any) -> gs.Variable:
        """Add a node with one output, which bears the node's name."""
        output = gs.Variable(name, dtype=np.float32)
        self.graph.nodes.append(
            gs.Node(op, name=name, inputs=list(inputs), outputs=[output], attrs=attrs)
        )
        self.values[name] = output
        return output

    def weight(self, name: str, tensor: Tensor) -> gs.Constant:
        """A float32 initializer."""
        return self.constant(name, tensor.detach().float().cpu().numpy())

    def constant(self, name: str, array: Array) -> gs.Constant:
        """An initializer as it is."""
        return gs.Constant(name, np.ascontiguousarray(array))

    def conv(
        self,
        name: str,
        x: gs.Variable,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> gs.Variable:
        """Conv with padding that keeps the size at stride 1."""
        inputs = [x, self.weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.weight(f"{name}.bias", bias))
        size = weight.shape[-1]
        return self.node(
            "Conv",
            name,
            inputs,
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
            dilations=[1, 1],
            group=groups,
        )

    def gemm(self, name: str, x: gs.Variable, weight: Tensor, bias: Tensor | None) -> gs.Variable:
        """(N, I) times the transpose of weight (O, I), plus bias."""
        inputs = [x, self.weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.weight(f"{name}.bias", bias))
        return self.node("Gemm", name, inputs, transB=1)

    def reshape(self, name: str, x: gs.Variable, shape: Sequence[int]) -> gs.Variable:
        """Reshape; 0 keeps a size (the batch's, which may be dynamic), -1 follows."""
        return self.node(
            "Reshape", name, [x, self.constant(f"{name}.shape", np.array(shape, np.int64))]
        )

    def split(
        self, name: str, x: gs.Variable, edges: Sequence[int]
    ) -> dict[tuple[int, int], gs.Variable]:
        """Channels between consecutive edges, by (start, stop)."""
        runs = list(pairwise(edges))
        outputs = [gs.Variable(f"{name}.{a}_{b}", dtype=np.float32) for a, b in runs]
        sizes = self.constant(f"{name}.sizes", np.array([b - a for a, b in runs], np.int64))
        self.graph.nodes.append(
            gs.Node("Split", name=name, inputs=[x, sizes], outputs=outputs, attrs={"axis": 1})
        )
        return dict(zip(runs, outputs, strict=True))


def variable(spec: TensorSpec) -> gs.Variable:
    """A variable of that contract."""
    return gs.Variable(spec.name, dtype=numpy_dtype(spec.dtype), shape=list(spec.shape))


def declare(tensor: gs.Variable, spec: TensorSpec) -> None:
    """Write a contract's shape and dtype onto a variable."""
    tensor.dtype, tensor.shape = numpy_dtype(spec.dtype), list(spec.shape)
