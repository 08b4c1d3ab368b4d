"""Values of an ONNX graph as channels of ncnn blobs.

What only moves channels about (Reshape, Transpose, Split, Concat, Flatten, Unsqueeze) is reckoned
here, on numbers that stand for channels, and costs nothing until a layer reads the result. Then as
few slices as there are runs of channels are cut and put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from parnet_deploy.engine.ncnn.layers import Blob, LayerGraph

_TO_BACK, _TO_FRONT = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of axes from (N, C, H, W) to (N, H, W, C), and back."""


class UnfitValueError(Exception):
    """A value cannot be moved or read in the way that an operator asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A value for one image: its channels, in some shape, and the pixels of each.

    Attributes:
        channels: numbers of `ChannelTable`; the shape is the value's own, but for the batch in
            front and the pixels behind.
        size: (H, W), (H*W,), or () for a vector.
        last: the graph has the channels behind the pixels, (N, H, W, C); a blob never has.
    """

    channels: NDArray[np.int64]
    size: tuple[int, ...]
    last: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch."""
        if self.last:
            return (*self.size, *self.channels.shape)
        return (*self.channels.shape, *self.size)

    def reshaped(self, shape: Sequence[int]) -> Value:
        """The same channels in another shape, the batch first; 0 keeps a size, -1 follows."""
        if self.last:
            raise UnfitValueError("its channels stand behind its pixels")
        wanted = [
            self.shape[index - 1] if size == 0 and index else size
            for index, size in enumerate(shape)
        ][1:]
        pixels = prod(self.size)
        kept = _trailing(wanted, pixels) if self.size else 0
        size = tuple(wanted[len(wanted) - kept :])
        return replace(
            self, channels=self.channels.reshape(wanted[: len(wanted) - kept]), size=size
        )

    def transposed(self, order: Sequence[int]) -> Value:
        """Axes in another order: the channels among themselves, or all behind the pixels."""
        if self.channels.ndim == 1 and tuple(order) == (_TO_FRONT if self.last else _TO_BACK):
            return replace(self, last=not self.last)
        axes = self.channels.ndim
        fixed = [0, *range(axes + 1, axes + 1 + len(self.size))]
        if self.last or [order[0], *order[axes + 1 :]] != fixed:
            raise UnfitValueError(f"axes {list(order)} do not leave the batch and pixels in place")
        return replace(
            self, channels=self.channels.transpose([axis - 1 for axis in order[1 : axes + 1]])
        )

    def split(self, sizes: Sequence[int]) -> list[Value]:
        """Cut behind the batch's axis."""
        if self.last or sum(sizes) != self.channels.shape[0]:
            raise UnfitValueError(f"{self.channels.shape[0]} channels are not {list(sizes)}")
        edges = np.cumsum([0, *sizes])
        return [replace(self, channels=self.channels[a:b]) for a, b in pairwise(edges)]


def joined(values: Sequence[Value], axis: int) -> Value:
    """Concatenated; axis 0 is the batch."""
    alike = len({value.size for value in values}) == 1 and not any(value.last for value in values)
    if not alike or not 1 <= axis <= values[0].channels.ndim:
        raise UnfitValueError(f"{[value.shape for value in values]} cannot be joined here")
    channels = np.concatenate([value.channels for value in values], axis=axis - 1)
    return Value(channels=channels, size=values[0].size)


class ChannelTable:
    """Gives every channel of every blob a number, consecutive within a blob only."""

    def __init__(self, layers: LayerGraph) -> None:
        """Begin; `layers` gets the slices and concatenations that become necessary."""
        self._layers = layers
        self._blobs: list[tuple[int, Blob]] = []
        self._joined: dict[tuple[int, ...], Blob] = {}
        self._next = 0

    def value(self, blob: Blob) -> Value:
        """A blob as a value (C, *size)."""
        first = self._next
        self._blobs.append((first, blob))
        self._next += blob.channels + 1  # so that runs end with their blob
        return Value(channels=np.arange(first, first + blob.channels), size=blob.size)

    def blob(self, value: Value, name: str) -> Blob:
        """A blob that holds a value, made of slices where no blob does.

        Args:
            value: (C, *size).
            name: what a new blob is called.

        Raises:
            UnfitValueError: the value has several axes of channels, or its pixels in one row.
        """
        if value.channels.ndim != 1:
            raise UnfitValueError(f"{value.shape} is not channels and pixels")
        key = tuple(value.channels.tolist())
        if key in self._joined:
            return self._joined[key]
        breaks = np.flatnonzero(np.diff(value.channels) != 1) + 1
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(value.channels, breaks)]
        parts = self._cut(runs)
        if any(part.size != value.size for part in parts):
            raise UnfitValueError(f"its pixels are {value.size}, not {parts[0].size}")
        if len(parts) == 1:
            return parts[0]
        top = Blob(name=name, channels=len(value.channels), size=value.size)
        self._joined[key] = self._layers.add("Concat", parts, top, {0: 0})
        return top

    def _cut(self, runs: Sequence[tuple[int, int]]) -> list[Blob]:
        """A blob per run; each blob that is not wanted whole is sliced once."""
        pieces: dict[tuple[int, int], Blob] = {}
        for first, blob in self._blobs:
            end = first + blob.channels
            own = sorted({run for run in runs if first <= run[0] < end})
            if own in ([], [(first, end)]):
                pieces |= dict.fromkeys(own, blob)
                continue
            edges = sorted({first, end, *(edge for run in own for edge in run)})
            cuts = list(pairwise(edges))
            if not set(own) <= set(cuts):
                raise UnfitValueError("some of its channels are wanted twice")
            tops = [
                Blob(name=f"{blob.name}/{a - first}-{b - first}", channels=b - a, size=blob.size)
                for a, b in cuts
            ]
            self._layers.add_slice(blob, tops)
            pieces |= dict(zip(cuts, tops, strict=True))
        return [pieces[run] for run in runs]


def _trailing(shape: Sequence[int], pixels: int) -> int:
    """How many axes at the end of a shape are all the pixels."""
    for count in (2, 1):
        if len(shape) > count and prod(shape[-count:]) == pixels:
            return count
    raise UnfitValueError(f"a shape {list(shape)} does not leave {pixels} pixels together")
