"""The physical floor of a network on the device that a contestant runs on."""

from __future__ import annotations

from parnet_deploy.bench.result import Floor
from parnet_deploy.engine.figures import figures_of
from parnet_deploy.roofline import Precision, floor
from parnet_deploy.spec import ParNetSpec


def floor_on(
    spec: ParNetSpec, device: str, *, precision: Precision = "fp32", batch: int = 1
) -> Floor | None:
    """The floor of a network on one device here.

    A network that is split over several devices is held against one of them: what it wins by
    having more shows as fewer times the floor.

    Args:
        spec: the network.
        device: ``cpu``, or ``cuda:0`` ...
        precision: what the contestant computes in; ``tf32`` for a float32 network that may.
        batch: images per run.

    Returns:
        Milliseconds, or None where the device's figures in that precision are not known.

    Raises:
        UsageError: there is no such device here.
    """
    figures = figures_of(device)
    if figures is None or precision not in figures.rates:
        return None
    bound = floor(spec, figures, precision=precision, batch=batch)
    return Floor(
        device=f"{figures.name}, {figures.origin}",
        roofline=1e3 * bound.roofline,
        launches=1e3 * bound.launches,
    )
