"""ParNet: the blocks of a layout, run in order."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from parnet_deploy.net.blocks import make_block
from parnet_deploy.spec import IMAGES, LOGITS, ParNetSpec, layout


class BlockGraph(nn.Module):
    """A network whose data flow is the layout of its spec; its blocks decide what is computed."""

    def __init__(self, spec: ParNetSpec, blocks: Iterable[nn.Module]) -> None:
        """Take one module per block of ``layout(spec)``, in that order."""
        super().__init__()
        self.spec = spec
        self.layout = layout(spec)
        self.blocks = nn.ModuleDict(
            {block.name: module for block, module in zip(self.layout, blocks, strict=True)}
        )

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Every block's output by the block's name; the head's is ``logits``.

        Args:
            images: (N, 3, H, W), H and W multiples of the spec's stride.
        """
        values = {IMAGES: images}
        for block in self.layout:
            name = LOGITS if block.kind == "head" else block.name
            values[name] = self.blocks[block.name](*(values[value] for value in block.inputs))
        del values[IMAGES]
        return values

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, classes)."""
        return self.values(images)[LOGITS]


class ParNet(BlockGraph):
    """A ParNet in training form (paper, section 3.3)."""

    def __init__(self, spec: ParNetSpec) -> None:
        """Make the network with torch's default initialisation."""
        super().__init__(spec, (make_block(block, spec) for block in layout(spec)))
