"""Which options a TensorRT flavour and version has, and the names of the flags they stand for."""

from __future__ import annotations

import re
from typing import Any

from parnet_deploy.engine.base import BuildOptions, flag
from parnet_deploy.errors import EngineError, UsageError
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend
from parnet_deploy.runtime.tensorrt_target import AND_LATER, PlanTarget, least_capability
from parnet_deploy.spec.targets import NAMES

MAX_OPTIMIZATION_LEVEL = 5

_OTHER_BACKENDS = frozenset({"provider", "threads"})

_MISSING: dict[TensorRTBackend, dict[str, str]] = {
    # TensorRT RTX takes these without an error, but for a warning at most, and does nothing.
    "tensorrt-rtx": {
        "version_compatible": "its plans run on the version that built them only",
        "hardware_compatible": "name several --compute-capability, or none for Ampere and later",
        "timing_cache": "it measures nothing when it builds",
    },
    "tensorrt": {
        "compute_capabilities": "it builds for the GPU that it finds; --backend tensorrt-rtx "
        "builds for others",
    },
}

_BUILDER_FLAGS: dict[str, tuple[str, ...]] = {
    "tf32": ("TF32",),
    "version_compatible": ("VERSION_COMPATIBLE",),
    # REFIT_IDENTICAL, not REFIT: the weights put in are those the plan was built with, and with
    # REFIT some versions of TensorRT drop a bias (release notes of 11.3).
    "weight_stripped": ("STRIP_PLAN", "REFIT_IDENTICAL"),
}


_RECORDABLE = "REQUIRE_USER_ALLOCATION"
"""TensorRT RTX asks for it where runs are recorded as CUDA graphs, as `CudaRunner` does."""


def flag_names(backend: TensorRTBackend, api: Any, options: BuildOptions) -> tuple[str, ...]:
    """Names of the builder flags that are to be set, in a fixed order."""
    asked = [
        name for field, names in _BUILDER_FLAGS.items() if getattr(options, field) for name in names
    ]
    if backend == "tensorrt-rtx" and hasattr(api.BuilderFlag, _RECORDABLE):
        asked.append(_RECORDABLE)
    return tuple(asked)


def check_options(backend: TensorRTBackend, api: Any, options: BuildOptions) -> None:
    """Refuse what a flavour or the version at hand does not have.

    Raises:
        UsageError: an option; the message names it and the version.
    """
    version = f"{NAMES[backend]} {api.__version__}"
    given = options.given()
    if wrong := sorted(given & _OTHER_BACKENDS):
        raise UsageError(f"{', '.join(map(flag, wrong))}: not for TensorRT engines")
    for field, reason in _MISSING[backend].items():
        if field in given:
            raise UsageError(f"{version} has no {flag(field)}: {reason}")
    for field, names in _BUILDER_FLAGS.items():
        lacking = [name for name in names if not hasattr(api.BuilderFlag, name)]
        if field in given and lacking:
            raise UsageError(f"{version} has no {flag(field)}: it lacks {', '.join(lacking)}")
    level = options.optimization_level
    if level is not None and level > MAX_OPTIMIZATION_LEVEL:
        raise UsageError(f"{version} has builder optimization levels 0 to 5, not {level}")
    for capability in options.compute_capabilities:
        _check_capability(version, api, capability)


def check_precision(precision: str, target: PlanTarget) -> None:
    """Refuse a precision that a GPU which plans are for does not compute in.

    Args:
        precision: of the graphs.
        target: what the plans are for.

    Raises:
        EngineError: the message names the first GPU that cannot, and what can be done.
    """
    least = least_capability(target.flavour, precision)
    if least is None:
        return
    for capability in target.compute_capabilities:
        major, minor = capability.removesuffix(AND_LATER).split(".")
        if (int(major), int(minor)) < least:
            words = f"{capability.removesuffix(AND_LATER)} and later"
            words = words if capability.endswith(AND_LATER) else capability
            raise EngineError(
                f"with {NAMES[target.flavour]} {precision} takes a GPU of compute capability "
                f"{least[0]}.{least[1]} or later, and plans are to be built for {words}: build for "
                f"such a GPU alone (--compute-capability {least[0]}.{least[1]}), or export the "
                "model with --precision fp16"
            )


def capability_name(capability: str) -> str:
    """TensorRT RTX's name of a compute capability: 8.6 is ``SM86``."""
    return f"SM{capability.replace('.', '')}"


def _check_capability(version: str, api: Any, capability: str) -> None:
    members = api.ComputeCapability.__members__
    if capability_name(capability) in members:
        return
    known = [f"{name[2:-1]}.{name[-1]}" for name in members if re.fullmatch(r"SM\d+", name)]
    raise UsageError(
        f"{version} has no --compute-capability {capability}; it builds for {', '.join(known)}"
    )
