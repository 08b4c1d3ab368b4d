"""What is to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parnet_deploy.spec import ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureStage:
    """One stage.

    Attributes:
        name: what stands on its region.
        blocks: names of its blocks, in order. A block may stand in several stages, which then
            each compute it.
        notes: what stands beside the name, most important first (device, kernels ...); those that
            do not fit are left out.
    """

    name: str
    blocks: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A network with its stages.

    Attributes:
        spec: the network.
        title: heading.
        subtitle: a line below it.
        stages: one for each engine or graph; together they hold every block.
        cut_labels: what stands on a value that crosses from stage to stage, by its name.
        output: name of what comes out.
        badge: a warning beside the heading, or None.
    """

    spec: ParNetSpec
    title: str
    subtitle: str
    stages: tuple[PictureStage, ...]
    cut_labels: Mapping[str, str] = field(default_factory=dict)
    output: str = "logits"
    badge: str | None = None
