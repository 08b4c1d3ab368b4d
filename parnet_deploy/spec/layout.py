"""The blocks of a ParNet, in order, and the stages they are cut into: derived from its spec.

Values carry the name of the block that makes them; the image is ``images`` and the head's output
``logits``. The same names are the modules' names in torch and the tensors' names in ONNX, so a
value can be followed from the training form into an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.errors import SpecError
from parnet_deploy.spec.parnet import ParNetSpec

BlockKind = Literal["skip", "plain", "fusion", "pointwise", "head"]
StemMode = Literal["replicate", "share"]

IMAGES = "images"
PREPROCESSED = "preprocess"
"""What a graph makes of uint8 images, where it does."""
LOGITS = "logits"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """One block.

    Attributes:
        name: name of the block and of the value it makes.
        kind: ``skip`` (RepVGG-SSE), ``plain`` (Downsampling and other blocks without a skip),
            ``fusion``, ``pointwise`` (1x1 convolution) or ``head`` (pool and linear).
        inputs: names of the values it reads: two for a fusion, one for each member for an
            ensemble's head, otherwise one.
        in_channels: channels of each input.
        out_channels: channels of the output (classes, for the head).
        stride: 1 or 2.
        scale: pixels of the image per pixel of the output, 0 for the head.
    """

    name: str
    kind: BlockKind
    inputs: tuple[str, ...]
    in_channels: int
    out_channels: int
    stride: int
    scale: int

    @property
    def groups(self) -> int:
        """Groups of its convolutions: 2 in a fusion, as two inputs are joined there."""
        return 2 if self.kind == "fusion" else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A part of the network that runs on its own.

    Attributes:
        name: ``stem``, ``stream1`` ... or ``fusion``.
        blocks: names of its blocks, in order.
        inputs: names of the values it needs from outside.
        outputs: names of the values it gives to other stages or to the caller.
    """

    name: str
    blocks: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A value that crosses from one stage to another."""

    tensor: str
    source: str
    target: str


def layout(spec: ParNetSpec) -> tuple[BlockSpec, ...]:
    """All blocks of a network, each after the ones it reads from.

    An ensemble's members are its streams: each has a stem, blocks and a last block of its own, and
    the head reads them all.
    """
    chain = _Chain()
    if spec.members > 1:
        ends = [_add_member(chain, spec, member) for member in range(1, spec.members + 1)]
    else:
        features = _add_stem(chain, spec)
        streams = enumerate(zip(features, spec.stream_blocks, strict=True), 1)
        made = [_add_stream(chain, stream, value, count) for stream, (value, count) in streams]
        ends = [_add_last(chain, spec, _add_merges(chain, spec, made))]
    chain.add("head", ends, spec.classes, kind="head")
    return tuple(chain.blocks)


def member_block(member: int, block: str) -> str:
    """The name, in an ensemble, of a block of a single-stream network.

    Args:
        member: which member, from 1.
        block: the block's name in the network by itself; the head is joined and has none.
    """
    return f"stream{member}_{block.removeprefix('stream1_')}"


class _Chain:
    """Collects blocks, and keeps count of what their values are like."""

    def __init__(self) -> None:
        self.blocks: list[BlockSpec] = []
        self.channels = {IMAGES: 3}
        self._scale = {IMAGES: 1}

    def add(
        self, name: str, inputs: Sequence[str], width: int, *, kind: BlockKind, stride: int = 1
    ) -> str:
        """Add a block that makes `width` channels; its name is its value's."""
        scale = 0 if kind == "head" else self._scale[inputs[0]] * stride
        self.blocks.append(
            BlockSpec(
                name=name,
                kind=kind,
                inputs=tuple(inputs),
                in_channels=self.channels[inputs[-1]],
                out_channels=width,
                stride=stride,
                scale=scale,
            )
        )
        self.channels[name], self._scale[name] = width, scale
        return name


def _add_stem(chain: _Chain, spec: ParNetSpec, prefix: str = "") -> list[str]:
    """The chain of blocks that makes every stream's feature map; these are what is returned."""
    value = IMAGES
    features = []
    widths = (*spec.stem_widths, *spec.stream_widths)
    strides = (*spec.stem_strides, *[2] * (len(spec.stream_widths) - 1))
    for index, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        kind: BlockKind = "skip" if chain.channels[value] == width and stride == 1 else "plain"
        value = chain.add(f"{prefix}stem{index + 1}", [value], width, kind=kind, stride=stride)
        if index >= len(spec.stem_widths):
            features.append(value)
    return features


def _add_stream(chain: _Chain, stream: int, value: str, count: int) -> str:
    for block in range(1, count + 1):
        name = f"stream{stream}_block{block}"
        value = chain.add(name, [value], chain.channels[value], kind="skip")
    return value


def _add_merges(chain: _Chain, spec: ParNetSpec, ends: Sequence[str]) -> str:
    """Join the streams, the finest first; a stream that is alone is left as it is."""
    value, *others = ends
    if not others:
        return value
    value = chain.add("merge1", [value], spec.stream_widths[1], kind="plain", stride=2)
    for stream, end in enumerate(others, 2):
        is_last = stream == len(ends)
        width = spec.stream_widths[stream - 1 if is_last else stream]
        stride = 1 if is_last else 2
        value = chain.add(f"merge{stream}", [end, value], width, kind="fusion", stride=stride)
    return value


def _add_last(chain: _Chain, spec: ParNetSpec, value: str, prefix: str = "") -> str:
    kind: BlockKind = "plain" if spec.last == "downsample" else "pointwise"
    return chain.add(f"{prefix}last", [value], spec.last_width, kind=kind, stride=spec.last_stride)


def _add_member(chain: _Chain, spec: ParNetSpec, member: int) -> str:
    (feature,) = _add_stem(chain, spec, prefix=member_block(member, ""))
    end = _add_stream(chain, member, feature, spec.stream_blocks[0])
    return _add_last(chain, spec, end, prefix=member_block(member, ""))


def stages(spec: ParNetSpec, stem: StemMode) -> tuple[StageSpec, ...]:
    """The network cut into stages: one a stream, one that joins them, and perhaps the stem.

    The Downsampling block behind the first stream (``merge1``) belongs to the first stream's
    stage: nothing else is needed to compute it, and its output is half the size of its input, so
    the cut costs half the bytes and the joining stage has one layer less on its critical path.
    An ensemble's member is a stage up to its last block, and what joins them is the head.

    Args:
        spec: the network.
        stem: ``replicate``: each stream's stage computes the part of the stem it needs from the
            image (paper, section 4: only finished stream outputs cross between devices);
            ``share``: the stem is a stage of its own, whose feature maps cross.

    Raises:
        SpecError: a stem to share in an ensemble, whose members have one each.
    """
    if spec.members > 1 and stem == "share":
        raise SpecError(
            f"the {spec.members} members of an ensemble have a stem each, so there is none to "
            "share; replicate is the only way to split it"
        )
    blocks = {block.name: block for block in layout(spec)}
    groups = _group(spec, tuple(blocks), stem)
    result = []
    for stage, names in groups.items():
        needed_elsewhere = {
            value
            for other, others in groups.items()
            if other != stage
            for name in others
            if name not in names
            for value in blocks[name].inputs
            if value not in others
        }
        reads = [value for name in names for value in blocks[name].inputs if value not in names]
        result.append(
            StageSpec(
                name=stage,
                blocks=tuple(names),
                inputs=tuple(dict.fromkeys(reads)),
                outputs=tuple(
                    LOGITS if name == "head" else name
                    for name in names
                    if name in needed_elsewhere or name == "head"
                ),
            )
        )
    return tuple(result)


def _group(spec: ParNetSpec, blocks: tuple[str, ...], stem: StemMode) -> dict[str, list[str]]:
    """The names of each stage's blocks."""
    stem_blocks = [name for name in blocks if name.startswith("stem")]
    groups: dict[str, list[str]] = {"stem": stem_blocks} if stem == "share" else {}
    for stream in range(1, spec.streams + 1):
        own = [name for name in blocks if name.startswith(f"stream{stream}_")]
        # The last stem block that a stream needs is the one that makes its feature map.
        needed = stem_blocks[: len(spec.stem_widths) + stream] if stem == "replicate" else []
        merge = ["merge1"] if stream == 1 and "merge1" in blocks else []
        groups[f"stream{stream}"] = needed + own + merge
    placed = {name for group in groups.values() for name in group}
    groups["fusion"] = [name for name in blocks if name not in placed and name not in stem_blocks]
    return groups


def cuts(stage_specs: Sequence[StageSpec]) -> tuple[Cut, ...]:
    """Every value that crosses from one stage to another."""
    source = {value: stage.name for stage in stage_specs for value in stage.outputs}
    return tuple(
        Cut(tensor=value, source=source[value], target=stage.name)
        for stage in stage_specs
        for value in stage.inputs
        if value in source
    )


def stored_order(block: BlockSpec) -> tuple[int, ...] | None:
    """Channel order that turns a block's stored output, in deploy form, into its training output.

    In training form a fusion ends with a channel shuffle over its groups; in deploy form that
    permutation is left to whoever reads the output, so ``training == stored[:, order]``. None
    where both are in the same order.
    """
    if block.kind != "fusion":
        return None
    per_group = block.out_channels // block.groups
    return tuple(
        group * per_group + index for index in range(per_group) for group in range(block.groups)
    )
