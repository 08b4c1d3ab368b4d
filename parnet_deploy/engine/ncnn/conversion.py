"""What is known while an ONNX graph becomes ncnn layers: its values, and who reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING

from parnet_deploy.engine.ncnn.layers import Blob, Draft, LayerGraph
from parnet_deploy.engine.ncnn.values import ChannelTable, UnfitValueError, Value
from parnet_deploy.errors import BuildError
from parnet_deploy.runtime.ncnn_param import Param
from parnet_deploy.spec import Array, TensorSpec

if TYPE_CHECKING:
    import onnx


class Conversion:
    """What has been converted so far.

    Attributes:
        layers: the layers.
        values: the values that are known, by name.
        constants: the graph's constants.
        silus: sigmoids of which only a product with their own input is wanted.
        sigmoid_of: those that were met, each with its input; none became a layer.
    """

    def __init__(
        self, graph: onnx.GraphProto, constants: Mapping[str, Array], wanted: AbstractSet[str]
    ) -> None:
        """Begin with a graph, its constants, and the names of what is wanted of it."""
        self.layers = LayerGraph()
        self.constants = constants
        self._table = ChannelTable(self.layers)
        self.values: dict[str, Value] = {}
        self._reads = Counter(name for node in graph.node for name in node.input)
        self._reads.update(wanted)
        self.sigmoid_of: dict[str, str] = {}
        self.silus = _silu_sigmoids(graph, wanted)

    def add_input(self, spec: TensorSpec) -> None:
        """Declare an input."""
        _, channels, *size = spec.concrete(1)
        blob = Blob(name=spec.name, channels=channels, size=tuple(size))
        params: dict[int, Param] = {0: channels}
        if size:
            params = {0: size[1], 1: size[0], 2: channels}
        self.layers.add("Input", [], blob, params)
        self.values[spec.name] = self._table.value(blob)

    def output(self, spec: TensorSpec) -> Blob:
        """The blob that holds an output.

        Raises:
            BuildError: it is not what the manifest says.
        """
        value = self.values.get(spec.name)
        if value is None or value.shape != spec.concrete(1)[1:]:
            found = "nothing" if value is None else f"{value.shape}"
            raise BuildError(
                f"'{spec.name}' is to be {spec.concrete(1)[1:]} for one image, and the graph "
                f"gives {found}"
            )
        return self._table.blob(value, spec.name)

    def blob(self, name: str) -> Blob:
        """The blob of a value, whose channels stand where ncnn has them.

        Raises:
            UnfitValueError: they stand behind the pixels, or no blob can hold the value.
        """
        if self.values[name].last:
            raise UnfitValueError(f"the channels of '{name}' stand behind its pixels")
        return self.blob_of_any(name)

    def blob_of_any(self, name: str) -> Blob:
        """The blob of a value, for what is reckoned element by element."""
        return self._table.blob(replace(self.values[name], last=False), name)

    def give(self, name: str, blob: Blob, *, last: bool = False) -> None:
        """Let a blob be a value; `last` as in `Value`."""
        self.values[name] = replace(self._table.value(blob), last=last)

    def move(self, node: onnx.NodeProto, *values: Value) -> None:
        """Give values that no layer makes. Who reads their source reads them, too."""
        others = max(self._reads[name] for name in node.input if name in self.values) - 1
        for name, value in zip(node.output, values, strict=True):
            self.values[name] = value
            self._reads[name] += others

    def layer(
        self,
        node: onnx.NodeProto,
        kind: str,
        bottoms: list[Blob],
        params: Mapping[int, Param],
        weights: list[Array],
        *,
        channels: int | None = None,
        size: tuple[int, ...] | None = None,
    ) -> None:
        """Add a layer; its blob is shaped like its first input's but for what is given."""
        top = Blob(
            name=node.output[0],
            channels=bottoms[0].channels if channels is None else channels,
            size=bottoms[0].size if size is None else size,
        )
        last = self._last(node)
        self.give(node.output[0], self.layers.add(kind, bottoms, top, params, weights), last=last)

    def _last(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads channels behind pixels, and gives them so."""
        given = {self.values[name].last for name in node.input if name in self.values}
        if len(given) > 1:
            raise UnfitValueError("only some of its inputs have their channels behind their pixels")
        return given == {True}

    def weight(self, name: str) -> Array:
        """A constant.

        Raises:
            UnfitValueError: it is none.
        """
        if name not in self.constants:
            raise UnfitValueError(f"'{name}' is no constant of the graph")
        return self.constants[name]

    def owner(self, name: str) -> Draft | None:
        """The layer that makes a value, where the node at hand is all that reads it."""
        return self.layers.maker(self.blob_of_any(name)) if self._reads[name] == 1 else None

    def rename(self, node: onnx.NodeProto, blob: Blob) -> None:
        """A node that was merged into the layer before it gives that layer's blob its name."""
        blob.name = node.output[0]
        self.values[node.output[0]] = self.values[node.input[0]]


def _silu_sigmoids(graph: onnx.GraphProto, wanted: AbstractSet[str]) -> frozenset[str]:
    """Sigmoids of which only a product with their own input is wanted."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return frozenset(
        node.output[0]
        for node in graph.node
        if node.op_type == "Sigmoid"
        and node.output[0] not in wanted
        and [reader.op_type for reader in readers.get(node.output[0], [])] == ["Mul"]
        and set(readers[node.output[0]][0].input) == {node.input[0], node.output[0]}
    )
