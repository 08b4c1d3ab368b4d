"""What a plan runs on: written into the manifest when it is built, checked before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from parnet_deploy.errors import EngineError, TargetError
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend
from parnet_deploy.spec import Backend
from parnet_deploy.spec.targets import NAMES

AND_LATER = "+"
AMPERE_AND_LATER = f"8.0{AND_LATER}"

LEAST_CAPABILITY: Mapping[TensorRTBackend, Mapping[str, tuple[int, int]]] = {
    "tensorrt": {"bf16": (8, 0), "fp8": (8, 9)},
    "tensorrt-rtx": {"int8": (8, 0), "bf16": (8, 0), "fp8": (8, 9)},
}
"""The first compute capability that computes in a precision; others need none of those that the
flavour builds for. For 7.5 TensorRT RTX builds int8 graphs, and computes their convolutions in
float16. References:
https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix.html,
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html"""


def least_capability(backend: Backend, precision: str) -> tuple[int, int] | None:
    """The first compute capability that a backend computes in a precision on; None: every one."""
    flavour = next((name for name in LEAST_CAPABILITY if name == backend), None)
    return None if flavour is None else LEAST_CAPABILITY[flavour].get(precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTarget:
    """What a plan needs.

    Attributes:
        flavour: which TensorRT built it.
        version: that TensorRT's version.
        compute_capabilities: GPUs it runs on, such as ``"8.6"``; ``"8.0+"`` means that and later.
        gpu: the only GPU model it runs on, or None where the compute capability is enough.
        version_compatible: whether later versions of that TensorRT run it too.
        weights: ``included``, or ``stripped``: to be put in when it is opened.
    """

    flavour: TensorRTBackend
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None = None
    version_compatible: bool = False
    weights: Literal["included", "stripped"] = "included"

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {**asdict(self), "compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlanTarget:
        """Read what `to_json` wrote.

        Raises:
            EngineError: something is missing or unknown.
        """
        try:
            given = {**values, "compute_capabilities": tuple(values["compute_capabilities"])}
            return cls(**given)
        except (KeyError, TypeError) as exc:
            raise EngineError(
                f"the engine's target is not one that this version of parnet-deploy reads ({exc}); "
                "build the engine again"
            ) from exc

    @property
    def gpus(self) -> str:
        """In words: the GPUs that it runs on."""
        capabilities = " or ".join(
            f"{cc.removesuffix(AND_LATER)} and later" if cc.endswith(AND_LATER) else cc
            for cc in self.compute_capabilities
        )
        return f"{self.gpu or 'a GPU'} of compute capability {capabilities}"

    @property
    def needs(self) -> str:
        """In words: the GPU and the version that it needs."""
        later = " or later" if self.version_compatible else ""
        return f"{self.gpus} and {NAMES[self.flavour]} {self.version}{later}"

    def check_gpu(self, gpu: Gpu) -> None:
        """Compare with the GPU that is to run the plan.

        Raises:
            TargetError: it is another one.
        """
        known = any(_covers(cc, gpu.compute_capability) for cc in self.compute_capabilities)
        if not known or self.gpu not in (None, gpu.name):
            raise TargetError(
                f"it needs {self.needs}, and cuda:{gpu.index} is {gpu.name}, compute capability "
                f"{gpu.compute_capability}"
            )

    def check_version(self, found: str) -> None:
        """Compare with the version of TensorRT that is installed.

        Raises:
            TargetError: it is one that does not run the plan.
        """
        later = self.version_compatible and _numbers(found) >= _numbers(self.version)
        if found != self.version and not later:
            raise TargetError(
                f"it needs {self.needs}, and {NAMES[self.flavour]} {found} is installed"
            )


def _covers(wanted: str, found: str) -> bool:
    if wanted.endswith(AND_LATER):
        return _numbers(found) >= _numbers(wanted.removesuffix(AND_LATER))
    return wanted == found


def _numbers(version: str) -> tuple[int, ...]:
    """A version as numbers; what is not a number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
