"""What a device can do at most, and the links between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline.costs import Precision

LAUNCH_SECONDS = 1.5e-6
"""From one kernel's end to the start of the next that waits for it, in a CUDA graph: assumed."""

HOP_SECONDS = 3e-6
"""From asking for a copy between two devices, or from the host, to its first byte: assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A way between two memories, in one direction.

    Attributes:
        bandwidth: bytes per second.
        latency: seconds before the first byte arrives.
    """

    bandwidth: float
    latency: float

    def seconds(self, nbytes: int) -> float:
        """How long a copy takes."""
        return self.latency + nbytes / self.bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device's peak figures.

    Attributes:
        name: what people call it.
        bandwidth: of its memory, in bytes per second.
        rates: operations per second by precision, dense, two per multiply-add.
        launch: seconds that a kernel costs which waits for another.
        link: to another device of the same kind.
        host: to and from host memory.
        source: where the figures are from: an address, or words.
        measured: whether they were measured here, and not printed by the vendor.
    """

    name: str
    bandwidth: float
    rates: Mapping[Precision, float]
    launch: float
    link: Link
    host: Link
    source: str
    measured: bool = False

    def rate(self, precision: Precision) -> float:
        """Operations per second in a precision.

        Raises:
            UsageError: it has none, or it is not known; those that are known are named.
        """
        if precision not in self.rates:
            raise UsageError(
                f"no peak rate of {self.name} in {precision} is known, "
                f"only in {', '.join(self.rates)}"
            )
        return self.rates[precision]

    @property
    def origin(self) -> str:
        """Where its figures are from, in a few words."""
        return self.source if self.measured else f"figures from {self.source}"


def between(source: Device, target: Device) -> Link:
    """The way from one device to another: as slow as the slower one's."""
    return Link(
        bandwidth=min(source.link.bandwidth, target.link.bandwidth),
        latency=max(source.link.latency, target.link.latency),
    )
