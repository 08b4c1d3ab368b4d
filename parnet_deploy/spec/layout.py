"""The blocks of a ParNet, in order, and the stages they are cut into: derived from its spec.

Values carry the name of the block that makes them; the image is ``images`` and the head's output
``logits``. The same names are the modules' names in torch and the tensors' names in ONNX, so a
value can be followed from the training form into an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from parnet_deploy.spec.parnet import ParNetSpec

BlockKind = Literal["skip", "plain", "fusion", "pointwise", "head"]
StemMode = Literal["replicate", "share"]

IMAGES = "images"
LOGITS = "logits"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """One block.

    Attributes:
        name: name of the block and of the value it makes.
        kind: ``skip`` (RepVGG-SSE), ``plain`` (Downsampling and other blocks without a skip),
            ``fusion``, ``pointwise`` (1x1 convolution) or ``head`` (pool and linear).
        inputs: names of the values it reads: two for a fusion, otherwise one.
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
    """All blocks of a network, each after the ones it reads from."""
    blocks: list[BlockSpec] = []
    channels = {IMAGES: 3}
    scale = {IMAGES: 1}

    def add(name: str, inputs: Sequence[str], width: int, stride: int, kind: BlockKind) -> str:
        in_channels = channels[inputs[-1]]
        channels[name] = width
        scale[name] = 0 if kind == "head" else scale[inputs[0]] * stride
        blocks.append(
            BlockSpec(
                name=name,
                kind=kind,
                inputs=tuple(inputs),
                in_channels=in_channels,
                out_channels=width,
                stride=stride,
                scale=scale[name],
            )
        )
        return name

    value = IMAGES
    features = []
    strides = (*spec.stem_strides, *[2] * (spec.streams - 1))
    for index, (width, stride) in enumerate(
        zip((*spec.stem_widths, *spec.stream_widths), strides, strict=True)
    ):
        is_skip = channels[value] == width and stride == 1
        value = add(f"stem{index + 1}", [value], width, stride, "skip" if is_skip else "plain")
        if index >= len(spec.stem_widths):
            features.append(value)

    ends = []
    for stream, (value, count) in enumerate(zip(features, spec.stream_blocks, strict=True), 1):
        for block in range(1, count + 1):
            value = add(f"stream{stream}_block{block}", [value], channels[value], 1, "skip")
        ends.append(value)

    value = ends[0]
    for stream, end in enumerate(ends, 1):
        is_last = stream == spec.streams
        if spec.streams > 1:
            width = spec.stream_widths[stream - 1 if is_last else stream]
            inputs, kind = ([end], "plain") if stream == 1 else ([end, value], "fusion")
            value = add(f"merge{stream}", inputs, width, 1 if is_last else 2, kind)  # type: ignore[arg-type]

    kind_of_last: BlockKind = "plain" if spec.last == "downsample" else "pointwise"
    value = add("last", [value], spec.last_width, spec.last_stride, kind_of_last)
    add("head", [value], spec.classes, 1, "head")
    return tuple(blocks)


def stages(spec: ParNetSpec, stem: StemMode) -> tuple[StageSpec, ...]:
    """The network cut into stages: one a stream, one that joins them, and perhaps the stem.

    The Downsampling block behind the first stream (``merge1``) belongs to the first stream's
    stage: nothing else is needed to compute it, and its output is half the size of its input, so
    the cut costs half the bytes and the joining stage has one layer less on its critical path.

    Args:
        spec: the network.
        stem: ``replicate``: each stream's stage computes the part of the stem it needs from the
            image (paper, section 4: only finished stream outputs cross between devices);
            ``share``: the stem is a stage of its own, whose feature maps cross.
    """
    blocks = {block.name: block for block in layout(spec)}
    stem_blocks = [name for name in blocks if name.startswith("stem")]
    feature_of = {  # the last stem block that each stream needs
        stream: len(spec.stem_widths) + stream for stream in range(1, spec.streams + 1)
    }
    groups: dict[str, list[str]] = {"stem": stem_blocks} if stem == "share" else {}
    for stream in range(1, spec.streams + 1):
        own = [name for name in blocks if name.startswith(f"stream{stream}_")]
        prefix = stem_blocks[: feature_of[stream]] if stem == "replicate" else []
        merge = ["merge1"] if stream == 1 and spec.streams > 1 else []
        groups[f"stream{stream}"] = prefix + own + merge
    placed = {name for group in groups.values() for name in group}
    groups["fusion"] = [name for name in blocks if name not in placed and name not in stem_blocks]

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
