"""What the doubles of TensorRT do, and what was done to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parnet_deploy.runtime.cuda.device import CudaDevice
from parnet_deploy.runtime.simulated.driver import SimulatedDriver
from parnet_deploy.spec import Array, TensorSpec

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_TYPES = {"float32": "FLOAT", "uint8": "UINT8", "float16": "HALF"}


@dataclass
class Scenario:
    """What the doubles do, and what was done to them.

    Attributes:
        driver: the GPUs that engines compute on.
        function: what engines compute.
        parser_errors: (node, operator, text) of each error that the parser reports.
        refuses: names of calls that answer with failure.
        layers: what the engine inspector tells of a plan.
        config: the builder configuration of the last build.
        refitted: the ONNX file whose weights were put in.
        log: calls worth checking, in order.
    """

    driver: SimulatedDriver = field(default_factory=SimulatedDriver)
    function: Function = dict
    parser_errors: tuple[tuple[str, str, str], ...] = ()
    refuses: set[str] = field(default_factory=set)
    layers: list[Any] = field(default_factory=list)
    config: Any = None
    refitted: str = ""
    log: list[str] = field(default_factory=list)

    def open_device(self, index: int) -> CudaDevice:
        """One of the GPUs."""
        return CudaDevice(index, driver=self.driver)


def make_plan(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    batch: tuple[int, int, int] = (1, 1, 1),
    *,
    stripped: bool = False,
) -> bytes:
    """A plan that the doubles load."""

    def tensor(spec: TensorSpec, mode: str) -> dict[str, Any]:
        shape = [-1 if isinstance(size, str) else size for size in spec.shape]
        return {"name": spec.name, "mode": mode, "dtype": _TYPES[spec.dtype], "shape": shape}

    tensors = [tensor(s, "INPUT") for s in inputs] + [tensor(s, "OUTPUT") for s in outputs]
    return json.dumps({"tensors": tensors, "batch": batch, "stripped": stripped}).encode()
