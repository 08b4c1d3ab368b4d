"""A contestant: something that answers images, described so that another process can open it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Group = Literal["ours", "peer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """What takes part in a contest. It crosses to its process as JSON.

    Attributes:
        name: how it stands in tables; different for each contestant of a network.
        group: an engine of this project, or a peer, as its own users would run it.
        network: which network it runs. Contestants of one network are compared with each other.
        opener: which function of `parnet_deploy.bench.contest.openers` opens it.
        path: the engine bundle or the file it is opened from.
        images: ``.npz`` file with what it is fed, one array for each dtype (N, 3, H, W):
            ``float32``, as the network reads it, and ``uint8``, the pixels that this comes from.
        devices: where it runs: ``cpu`` or ``cuda:0`` ...
        settings: what else the opener needs to know (JSON values).
    """

    name: str
    group: Group
    network: str
    opener: str
    path: str
    images: str
    devices: tuple[str, ...] = ("cpu",)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from every other contestant of a contest."""
        return f"{self.network}: {self.name}"
