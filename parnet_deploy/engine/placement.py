"""Placement: which stage runs on which device, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from parnet_deploy.bundle import ModelManifest
from parnet_deploy.engine.figures import figures_of
from parnet_deploy.errors import ParnetDeployError, UsageError
from parnet_deploy.roofline import GPUS, PRECISIONS, Device, Precision
from parnet_deploy.roofline.options import streams_of
from parnet_deploy.roofline.predict import Assumptions, work_of
from parnet_deploy.roofline.search import best_placement
from parnet_deploy.spec import stages

STAND_IN = GPUS["rtx 3090"]
"""Whose figures a GPU is given that is not here or not in the table: the paper's."""


def parse_placement(text: str) -> dict[str, str]:
    """``stream1=cuda:0,stream2=cuda:1`` as a device for every stage.

    Raises:
        UsageError: it is not of that form, or names a stage twice.
    """
    placement: dict[str, str] = {}
    for part in text.split(","):
        stage, equals, device = (piece.strip() for piece in part.partition("="))
        if not (stage and equals and device) or stage in placement:
            raise UsageError(
                "a placement names every stage once, as in stream1=cuda:0,stream2=cuda:1; "
                f"not '{text}'"
            )
        placement[stage] = device
    return placement


def gpu_numbers(placement: Mapping[str, str]) -> tuple[int, ...]:
    """The GPUs of a placement, in the order of the stages; none where it is on the CPU.

    Raises:
        UsageError: a device is neither ``cpu`` nor ``cuda:N``, or some are one and some the other.
    """
    devices = tuple(dict.fromkeys(placement.values()))
    if devices == ("cpu",):
        return ()
    matches = [re.fullmatch(r"cuda:(\d+)", device) for device in devices]
    if not all(matches):
        raise UsageError(
            f"the stages of one engine are all on cpu, or on GPUs such as cuda:0; "
            f"not on {', '.join(devices)}"
        )
    return tuple(int(match[1]) for match in matches if match)


def check_placement(
    placement: Mapping[str, str], names: Sequence[str], devices: Sequence[str]
) -> None:
    """Refuse a placement that does not give exactly the stages that there are one of the devices.

    Raises:
        UsageError: it leaves a stage out, names one that there is not, or another device.
    """
    missing = [name for name in names if name not in placement]
    extra = [name for name in placement if name not in names]
    if missing or extra:
        parts = [f"leaves out {', '.join(missing)}"] * bool(missing)
        parts += [f"names {', '.join(extra)}"] * bool(extra)
        raise UsageError(
            f"a placement names each stage, which are {', '.join(names)}; "
            f"this one {' and '.join(parts)}"
        )
    if others := sorted(set(placement.values()) - set(devices)):
        raise UsageError(
            f"the placement names {', '.join(others)}, and the engine is built for "
            f"{', '.join(devices)}"
        )


def place(manifest: ModelManifest, devices: Sequence[str]) -> dict[str, str]:
    """Spread a model's stages over devices, so that a run is expected to take the least time.

    Streams stand on as many of the devices as they can; which of them share one, and where the
    stem and what joins the streams stand, follows from the latency model (`parnet_deploy.roofline`)
    with the devices' figures. A GPU without figures is given those of `STAND_IN`: which stages
    take long changes little from one GPU to another.

    Args:
        manifest: the model's.
        devices: at least one; fewer than there are streams are shared, more stay unused.

    Returns:
        A device for every stage.
    """
    cut = stages(manifest.spec, manifest.stem)
    if len(devices) == 1:
        return {stage.name: devices[0] for stage in cut}
    figures = {device: _figures(device) for device in devices}
    assumed = Assumptions(precision=_precision(manifest, figures), batch=manifest.batch.opt)
    work = work_of(manifest.spec, cut, figures, assumed)
    return dict(best_placement(work, spread=streams_of(cut)).placement)


def _figures(device: str) -> Device:
    try:
        return figures_of(device) or STAND_IN
    except ParnetDeployError:  # it is on the machine that the engine is for
        return STAND_IN


def _precision(manifest: ModelManifest, figures: Mapping[str, Device]) -> Precision:
    """The model's, where all devices' rates in it are known."""
    for precision in PRECISIONS:
        if precision == manifest.precision and all(
            precision in device.rates for device in figures.values()
        ):
            return precision
    return "fp32"
