"""The least time in which a device's peak figures allow a network to answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parnet_deploy.roofline.costs import Cost, Precision, block_costs, critical_kernels
from parnet_deploy.roofline.devices import Device
from parnet_deploy.spec import ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """A lower bound of a network's latency on one device, in seconds.

    Attributes:
        roofline: sum over layers of the greater of operations and bytes over their peak rates.
        launches: kernels that wait for each other times the cost of one.
    """

    roofline: float
    launches: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.roofline + self.launches


def roofline_seconds(costs: Iterable[Cost], device: Device, precision: Precision) -> float:
    """Layer by layer, the time that its operations take or its bytes, whichever is longer.

    Raises:
        UsageError: the device's rate in that precision is not known.
    """
    rate = device.rate(precision)
    return sum(max(cost.operations / rate, cost.bytes / device.bandwidth) for cost in costs)


def floor(
    spec: ParNetSpec, device: Device, *, precision: Precision = "fp32", batch: int = 1
) -> Bound:
    """The floor of a whole network on one device.

    The layers are its convolutions and the linear layer, each computed directly: Winograd's
    algorithm needs fewer multiplications, and can go below. Squeezes count as kernels that others
    wait for, and not in the roofline part: their few bytes can be read while a convolution
    computes.

    Args:
        spec: the network.
        device: what it runs on.
        precision: of weights and activations.
        batch: images per run.

    Raises:
        UsageError: the device's rate in that precision is not known, or the batch is below 1.
    """
    costs = block_costs(spec, precision=precision, batch=batch).values()
    return Bound(
        roofline=roofline_seconds((cost.layer for cost in costs), device, precision),
        launches=critical_kernels(spec) * device.launch,
    )
