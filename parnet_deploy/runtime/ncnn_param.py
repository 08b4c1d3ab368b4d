"""ncnn's ``.param`` text: the layers of a network, and how many bytes of weights belong to them.

Only the layers that a ParNet needs. A file is read here before ncnn sees it: ncnn reports damage
on standard error, and a ``.bin`` that is too short is not its own check to fail.
References: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure,
https://github.com/Tencent/ncnn/blob/master/docs/developer-guide/operators.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from parnet_deploy.errors import EngineError

MAGIC = "7767517"
"""First line of every ``.param``; it names the version of the format."""

FLAG_BYTES = 4
"""A tag before the main weights of a layer; 0 means float32 as it is."""

_FLOAT_BYTES = 4
_LONGEST_NAME = 255  # ncnn reads "%255s"


Param = int | tuple[int, ...]

DYNAMIC_SCALE = -233
"""Scale's number of weights where these are its second input."""

_ARRAY = -23300
"""An array's number in the text is this, less its own."""


class _Sizes(NamedTuple):
    """Parameters that tell how many weights a layer has, whether it has a bias, and how long."""

    weights: int
    has_bias: int
    bias: int


_SIZES: Mapping[str, _Sizes] = {
    "Convolution": _Sizes(6, 5, 0),
    "ConvolutionDepthWise": _Sizes(6, 5, 0),
    "InnerProduct": _Sizes(2, 1, 0),
    "Scale": _Sizes(0, 1, 0),
}
_FLAGGED = frozenset({"Convolution", "ConvolutionDepthWise", "InnerProduct"})
_WITHOUT_WEIGHTS = frozenset(
    {
        *("Input", "Split", "Slice", "Concat", "Reshape"),
        *("BinaryOp", "Eltwise", "Pooling", "Softmax"),
        *("ReLU", "Sigmoid", "Swish"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NcnnLayer:
    """One line of a ``.param``.

    Attributes:
        kind: layer type, such as ``Convolution``.
        name: layer name.
        bottoms: blobs it reads.
        tops: blobs it gives.
        params: its parameters by their numbers; several numbers are an array.
    """

    kind: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: Mapping[int, Param] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would not survive the text.

        Raises:
            EngineError: an unknown kind, or a name that is empty, too long or not one word.
        """
        if self.kind not in _WITHOUT_WEIGHTS | _SIZES.keys():
            raise EngineError(f"'{self.kind}' is not a layer that a ParNet needs in ncnn")
        for name in (self.name, *self.bottoms, *self.tops):
            if name.split() != [name] or len(name.encode()) > _LONGEST_NAME:
                raise EngineError(f"ncnn takes names of one word, at most 255 bytes; not '{name}'")

    @property
    def flagged(self) -> bool:
        """Whether a tag stands before its weights."""
        return self.kind in _FLAGGED

    @property
    def weight_bytes(self) -> int:
        """Bytes of the ``.bin`` that belong to it.

        Raises:
            EngineError: a parameter that says how many is missing.
        """
        sizes = _SIZES.get(self.kind)
        if sizes is None:
            return 0
        weights, bias = self._number(sizes.weights), 0
        if weights == DYNAMIC_SCALE and self.kind == "Scale":
            return 0
        if self.params.get(sizes.has_bias, 0):
            bias = self._number(sizes.bias)
        return _FLOAT_BYTES * (weights + bias) + (FLAG_BYTES if self.flagged else 0)

    def text(self) -> str:
        """The line."""
        words = [self.kind, self.name, len(self.bottoms), len(self.tops)]
        words += [*self.bottoms, *self.tops]
        words += [_param_word(number, value) for number, value in self.params.items()]
        return " ".join(map(str, words))

    def _number(self, number: int) -> int:
        value = self.params.get(number)
        if not isinstance(value, int):
            raise EngineError(f"layer '{self.name}' lacks parameter {number}")
        return value


def param_text(layers: Iterable[NcnnLayer]) -> str:
    """A whole ``.param``."""
    lines = list(layers)
    blobs = sum(len(layer.tops) for layer in lines)
    body = "\n".join(layer.text() for layer in lines)
    return f"{MAGIC}\n{len(lines)} {blobs}\n{body}\n"


def read_param(text: str) -> tuple[NcnnLayer, ...]:
    """The layers of a ``.param``.

    Raises:
        EngineError: it is damaged, of another format, or holds a layer that is not known here.
    """
    lines = text.split("\n")
    if lines[0] != MAGIC:
        raise EngineError(f"it begins with '{lines[0][:40]}', not with ncnn's {MAGIC}")
    try:
        layer_count, blob_count = map(int, lines[1].split())
        layers = tuple(_read_line(line) for line in lines[2:-1])
    except (ValueError, IndexError) as exc:
        raise EngineError("a line of it cannot be read; the file is damaged") from exc
    blobs = [blob for layer in layers for blob in layer.tops]
    if lines[-1] or (len(layers), len(blobs)) != (layer_count, blob_count):
        raise EngineError(
            f"it holds {len(layers)} layers and {len(blobs)} blobs, not the {layer_count} and "
            f"{blob_count} it names; the file is damaged"
        )
    _check_blobs(layers)
    return layers


def _read_line(line: str) -> NcnnLayer:
    kind, name, bottoms, tops, *rest = line.split(" ")
    first, last = int(bottoms), int(bottoms) + int(tops)
    layer = NcnnLayer(
        kind=kind,
        name=name,
        bottoms=tuple(rest[:first]),
        tops=tuple(rest[first:last]),
        params=dict(map(_read_param_word, rest[last:])),
    )
    if layer.text() != line:
        raise ValueError(line)
    return layer


def _param_word(number: int, value: Param) -> str:
    if isinstance(value, int):
        return f"{number}={value}"
    return f"{_ARRAY - number}={','.join(map(str, (len(value), *value)))}"


def _read_param_word(word: str) -> tuple[int, Param]:
    key, _, value = word.partition("=")
    if (number := int(key)) > _ARRAY:
        return number, int(value)
    return _ARRAY - number, tuple(map(int, value.split(",")))[1:]


def _check_blobs(layers: Iterable[NcnnLayer]) -> None:
    """Every blob is made once, before it is read, and read at most once, as ncnn wants it."""
    unread: set[str] = set()
    made: set[str] = set()
    for layer in layers:
        for blob in layer.bottoms:
            if blob not in unread:
                raise EngineError(f"blob '{blob}' is read before it is made, or twice")
            unread.remove(blob)
        for blob in layer.tops:
            if blob in made:
                raise EngineError(f"blob '{blob}' is made twice")
            made.add(blob)
            unread.add(blob)
