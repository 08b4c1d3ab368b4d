"""A network of ncnn layers while it is put together, and the two files that it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.ncnn_param import FLAG_BYTES, NcnnLayer, Param, param_text
from parnet_deploy.spec import Array


@dataclass(kw_only=True, slots=True)
class Blob:
    """A blob while its network is put together: compared by identity, named at the end.

    Attributes:
        name: its name so far; a layer that is merged into another hands its name on.
        channels: C.
        size: (H, W), or () for a vector.
    """

    name: str
    channels: int
    size: tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class Draft:
    """A layer that may still change: a later operator can be merged into it."""

    kind: str
    bottoms: list[Blob]
    tops: list[Blob]
    params: dict[int, Param] = field(default_factory=dict)
    weights: list[Array] = field(default_factory=list)


class LayerGraph:
    """Collects layers in the order in which they can run."""

    def __init__(self) -> None:
        """Begin without any."""
        self.drafts: list[Draft] = []

    def add(
        self,
        kind: str,
        bottoms: Sequence[Blob],
        top: Blob,
        params: Mapping[int, Param] | None = None,
        weights: Iterable[Array] = (),
    ) -> Blob:
        """Add a layer with one output.

        Args:
            kind: layer type.
            bottoms: what it reads.
            top: what it gives.
            params: its parameters by their numbers.
            weights: in the order in which ncnn reads them; those of a convolution or an inner
                product first.

        Returns:
            `top`.
        """
        draft = Draft(kind=kind, bottoms=list(bottoms), tops=[top])
        draft.params.update(params or {})
        draft.weights.extend(weights)
        self.drafts.append(draft)
        return top

    def add_slice(self, source: Blob, tops: Sequence[Blob]) -> None:
        """Cut a blob into consecutive runs of channels."""
        sizes = tuple(top.channels for top in tops)
        self.drafts.append(
            Draft(kind="Slice", bottoms=[source], tops=list(tops), params={0: sizes, 1: 0})
        )

    def maker(self, blob: Blob) -> Draft | None:
        """The layer that gives a blob."""
        return next((d for d in reversed(self.drafts) if any(t is blob for t in d.tops)), None)

    def write(self, outputs: Sequence[tuple[str, Blob]], param: Path, weights: Path) -> None:
        """Write ``.param`` and ``.bin``.

        Args:
            outputs: blobs that are wanted, and the names they must have.
            param: where the layers go.
            weights: where the weights go.

        Raises:
            EngineError: two blobs would have the same name, or a layer's weights are not as many
                as its parameters say.
            OSError: a file cannot be written.
        """
        with weights.open("wb") as stream:
            layers = []
            for layer, draft in _resolve(self.drafts, outputs):
                layers.append(layer)
                if draft is not None:
                    stream.write(_weight_data(layer, draft))
        param.write_text(param_text(layers), encoding="utf-8")


def _weight_data(layer: NcnnLayer, draft: Draft) -> bytes:
    arrays = [np.ascontiguousarray(array, "<f4").tobytes() for array in draft.weights]
    data = b"".join([bytes(FLAG_BYTES) if layer.flagged else b"", *arrays])
    if len(data) != layer.weight_bytes:
        raise EngineError(
            f"{layer.kind} '{layer.name}' has {len(data)} bytes of weights, and its parameters "
            f"say {layer.weight_bytes}"
        )
    return data


def _resolve(
    drafts: Sequence[Draft], outputs: Sequence[tuple[str, Blob]]
) -> Iterator[tuple[NcnnLayer, Draft | None]]:
    """Layers by name. A blob that is read more than once goes through a Split: ncnn wants it so.

    An output that is also read inside is a top of its Split, or ncnn would have freed it.
    """
    reads = Counter(id(blob) for draft in drafts for blob in draft.bottoms)
    wanted: dict[int, list[str]] = {}
    for name, blob in outputs:
        wanted.setdefault(id(blob), []).append(name)
    names: dict[int, list[str]] = {}  # of what is still to be read
    for draft in drafts:
        bottoms = tuple(names[id(blob)].pop(0) for blob in draft.bottoms)
        tops, splits = [], []
        for blob in draft.tops:
            inside, outside = reads[id(blob)], wanted.get(id(blob), [])
            fixed = draft.kind == "Input" and outside  # its name stays, whatever is wanted of it
            if inside + len(outside) <= 1 and not fixed:
                tops.append(outside[0] if outside else blob.name)
                names[id(blob)] = [blob.name]
                continue
            tops.append(f"{blob.name}/made" if blob.name in outside else blob.name)
            names[id(blob)] = [f"{blob.name}/{number}" for number in range(inside)]
            splits.append((tops[-1], (*outside, *names[id(blob)])))
        yield _layer(draft.kind, bottoms, tuple(tops), draft.params), draft
        for source, copies in splits:
            yield _layer("Split", (source,), copies, {}), None


def _layer(
    kind: str, bottoms: tuple[str, ...], tops: tuple[str, ...], params: Mapping[int, Param]
) -> NcnnLayer:
    name = tops[0] if kind != "Split" else f"{bottoms[0]}/split"
    return NcnnLayer(kind=kind, name=name, bottoms=bottoms, tops=tops, params=params)
