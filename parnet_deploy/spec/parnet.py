"""ParNetSpec: one network, as data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from parnet_deploy.errors import SpecError

Activation = Literal["silu", "relu"]
LastBlock = Literal["downsample", "pointwise"]

MAX_STREAMS = 4

_NAME = re.compile(r"(?!\.)[^\s/\\\x00-\x1f\x7f]+")
"""Names of files, whatever the system, that lead nowhere else and are seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParNetSpec:
    """A ParNet: a stem, 1 to 4 parallel streams at falling resolutions, fusions and a head.

    The stem is a chain of blocks: those of `stem_widths`, then one for each stream, whose output
    is that stream's feature map. Every stream's feature map has half the resolution of the one
    before. Paper: section 3.3 and table A1 (ImageNet), section 3.3 (CIFAR).

    Attributes:
        name: what people call it; bundles and their folders are named after it.
        stem_widths: output channels of the blocks before the first stream's own feature block.
        stem_strides: strides of those blocks, then of the first stream's feature block.
        stream_widths: channels of each stream, highest resolution first.
        stream_blocks: number of RepVGG-SSE blocks in each stream.
        last: the block after the last fusion: a Downsampling block, or a pointwise convolution.
        last_width: its output channels, which the classifier reads.
        last_stride: its stride.
        activation: the non-linearity of every block.
        squeeze: whether blocks have their Skip-Squeeze-Excitation.
        classes: number of classes.
        image_size: height and width in pixels.
        dropout: probability of dropout before the classifier, in training.
        conv_dropout: probability of dropout behind the convolutions of every block, in training.
        bn_eps: epsilon of every batch normalisation.
        members: how many single-stream networks make up an ensemble, as one network whose streams
            they are (paper, table 9); 1 for what is no ensemble.
    """

    name: str
    stem_widths: tuple[int, ...]
    stem_strides: tuple[int, ...]
    stream_widths: tuple[int, ...]
    stream_blocks: tuple[int, ...]
    last: LastBlock = "downsample"
    last_width: int
    last_stride: int = 2
    activation: Activation = "silu"
    squeeze: bool = True
    classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    dropout: float = 0.0
    conv_dropout: float = 0.0
    bn_eps: float = 1e-5
    members: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming the field.

        Raises:
            SpecError: a field has a value that no network can have.
        """
        self._check_layers()
        self._check_values()

    def _check_layers(self) -> None:
        """Refuse numbers, widths and strides of blocks that do not fit together."""
        _require(
            bool(_NAME.fullmatch(self.name)),
            "a name that can be part of a file's (no path separator, no space, no leading dot), "
            f"not {self.name!r}",
        )
        streams = len(self.stream_widths)
        _require(1 <= streams <= MAX_STREAMS, f"1 to {MAX_STREAMS} streams, not {streams}")
        _require(
            len(self.stream_blocks) == streams,
            f"one number of blocks per stream: {streams} streams, blocks {self.stream_blocks}",
        )
        _require(all(n >= 1 for n in self.stream_blocks), "at least one block in every stream")
        _require(
            all(w >= 1 for w in (*self.stem_widths, *self.stream_widths, self.last_width)),
            f"positive widths, not {self.stem_widths + self.stream_widths + (self.last_width,)}",
        )
        # A fusion block is grouped by two, and its output is shuffled over its groups.
        _require(
            all(w % 4 == 0 for w in self.stream_widths[1:]),
            "stream widths (but the first) that are multiples of 4, "
            f"not {self.stream_widths[1:]}: they are split into groups",
        )
        _require(
            len(self.stem_strides) == len(self.stem_widths) + 1
            and all(stride in (1, 2) for stride in self.stem_strides),
            f"stem strides of 1 or 2, one for each of the {len(self.stem_widths)} stem widths "
            f"and one for the first feature block, not {self.stem_strides}",
        )
        _require(self.last_stride in (1, 2), f"a last stride of 1 or 2, not {self.last_stride}")
        _require(
            self.last in get_args(LastBlock),
            f"a last block of {get_args(LastBlock)}, not {self.last!r}",
        )
        _require(
            self.last != "pointwise" or self.last_stride == 1,
            "last_stride 1 where the last block is a pointwise convolution",
        )

    def _check_values(self) -> None:
        """Refuse what a block, the image or an ensemble cannot be."""
        _require(
            self.activation in get_args(Activation),
            f"an activation of {get_args(Activation)}, not {self.activation!r}",
        )
        _require(self.classes >= 1, f"at least one class, not {self.classes}")
        _require(0.0 <= self.dropout < 1.0, f"a dropout in [0, 1), not {self.dropout}")
        _require(
            0.0 <= self.conv_dropout < 1.0, f"a conv_dropout in [0, 1), not {self.conv_dropout}"
        )
        _require(
            math.isfinite(self.bn_eps) and self.bn_eps > 0.0,
            f"a positive bn_eps, not {self.bn_eps}",
        )
        _require(self.members >= 1, f"at least one member, not {self.members}")
        _require(
            self.members == 1 or len(self.stream_widths) == 1,
            f"one stream in each of an ensemble's {self.members} members, "
            f"not {len(self.stream_widths)}",
        )
        height, width = self.image_size
        _require(
            height > 0 and width > 0 and height % self.stride == 0 and width % self.stride == 0,
            f"an image size that is a multiple of {self.stride} both ways, "
            f"not {height}x{width}: the pooled and the strided branch disagree on odd sizes",
        )

    @property
    def streams(self) -> int:
        """Number of streams that run side by side; an ensemble's are its members."""
        return self.members * len(self.stream_widths)

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the last feature map; sizes must be multiples of it."""
        halvings = len(self.stream_widths) - 1
        return math.prod(self.stem_strides) * (1 << halvings) * self.last_stride

    @property
    def widths(self) -> tuple[int, ...]:
        """(C1, ..., Cn, Clast), as the paper's table A1 and ``--widths`` write them.

        An ensemble's are one member's: (C1, Clast).
        """
        return (*self.stream_widths, self.last_width)

    def with_widths(self, widths: tuple[int, ...]) -> ParNetSpec:
        """The same network with other widths (C1, ..., Cn, Clast).

        The stem's own widths follow: its first block has min(64, what comes next) where it halves
        the resolution; each further one has half the width of what comes next where that halves
        the resolution, and the same width where it does not.

        Raises:
            SpecError: not one width per stream and one more.
        """
        needed = len(self.widths)
        if len(widths) != needed:
            raise SpecError(
                f"widths are one per stream, then the last block's: {needed} for this network, "
                f"not {len(widths)}: {','.join(map(str, widths))}"
            )
        stem = [widths[0]]
        for stride in reversed(self.stem_strides[1:]):
            stem.insert(0, max(1, stem[0] // stride))
        if self.stem_widths and self.stem_strides[0] == 2:
            stem[0] = min(64, stem[1])
        return replace(
            self,
            stem_widths=tuple(stem[:-1]),
            stream_widths=widths[:-1],
            last_width=widths[-1],
        )

    def with_streams(self, streams: int) -> ParNetSpec:
        """The same network with its finest streams dropped, or a coarser one added.

        The depth of every remaining stream's path is kept, by changing its number of blocks.
        Fewer streams: the finer ones go, and their feature blocks join the stem. More: another of
        the coarsest width at half its resolution; then the last block keeps the resolution, so
        that image sizes remain multiples of the same number (of twice that, where it kept it
        before). The paper's table 10 varies the
        number of streams without giving the layers: this is our reading of it.

        Raises:
            SpecError: not 1 to 4 streams, no room for a block in one of them, or an ensemble.
        """
        _require(1 <= streams <= MAX_STREAMS, f"1 to {MAX_STREAMS} streams, not {streams}")
        _require(
            self.members in (1, streams),
            f"one stream for each of its {self.members} members where it is an ensemble, "
            f"not {streams} streams",
        )
        spec = self
        while spec.streams > streams:
            spec = spec._without_finest_stream()
        while spec.streams < streams:
            spec = spec._with_coarser_stream()
        return spec

    def with_depth(self, depth: int) -> ParNetSpec:
        """The same network with a longest path of `depth` convolutions and linear layers.

        Every stream gets or loses the same number of blocks, so that paths of the same length
        remain so: from 12, depth 9 is reached with three blocks fewer in each stream and depth 15
        with three more. (The paper's table 11 gives the depths and not the layers.)

        Raises:
            SpecError: no block would be left in one of the streams.
        """
        from parnet_deploy.spec.counts import depth as depth_of  # counted from a spec's layout

        now = depth_of(self)
        least = now - min(self.stream_blocks) + 1
        _require(
            depth >= least,
            f"a depth of at least {least} (it is {now} with blocks {self.stream_blocks}), "
            f"not {depth}: at least one block stays in every stream",
        )
        return replace(self, stream_blocks=tuple(n + depth - now for n in self.stream_blocks))

    def _without_finest_stream(self) -> ParNetSpec:
        # Coarser paths meet the same fusions as before; only the last one left meets none.
        alone = self.streams == 2
        return replace(
            self,
            stem_widths=(*self.stem_widths, self.stream_widths[0]),
            stem_strides=(*self.stem_strides, 2),
            stream_widths=self.stream_widths[1:],
            stream_blocks=tuple(n + alone for n in self.stream_blocks[1:]),
        )

    def _with_coarser_stream(self) -> ParNetSpec:
        # Every path meets one more fusion (two more where there was one stream and so none).
        more = 2 if self.streams == 1 else 1
        kept = tuple(n - more for n in self.stream_blocks)
        return replace(
            self,
            stream_widths=(*self.stream_widths, self.stream_widths[-1]),
            stream_blocks=(*kept, kept[-1]),
            last_stride=1,
        )


def _require(condition: bool, expectation: str) -> None:
    if not condition:
        raise SpecError(f"a ParNet needs {expectation}")
