"""Doubles of TensorRT's runtime, engines, contexts and refitter: they check what it requires."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from doubles.scenario import Scenario
from parnet_deploy.runtime.simulated.work import MisuseError
from parnet_deploy.spec import Array


@dataclass
class FakeRuntime:
    api: Any
    scenario: Scenario
    log: Any
    rtx: bool
    engine_host_code_allowed: bool = False

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        self.device = self.scenario.driver.current()
        self.scenario.log.append(f"deserialize, host code allowed: {self.engine_host_code_allowed}")
        try:
            plan = json.loads(bytes(data))
        except ValueError:
            self.log.log(self.api.ILogger.Severity.ERROR, "magic tag does not match")
            return None
        return FakeEngine(self.api, self.scenario, plan, self.rtx, self.device)


class RtxRuntime(FakeRuntime):
    """Only TensorRT RTX looks at a plan's header by itself."""

    engine_header_size = 64

    def get_engine_validity(self, header: bytes) -> tuple[Any, int]:
        if len(header) > self.engine_header_size:
            raise MisuseError("only the header is needed")
        validity = self.api.EngineValidity
        if "get_engine_validity" in self.scenario.refuses:
            return validity.INVALID, 1 | 32
        return validity.VALID, 0


class FakeEngine:
    num_aux_streams = 1

    def __init__(
        self, api: Any, scenario: Scenario, plan: dict[str, Any], rtx: bool, device: int
    ) -> None:
        self.api, self.scenario, self.rtx, self.device = api, scenario, rtx, device
        self.tensors = {tensor["name"]: tensor for tensor in plan["tensors"]}
        self.batch = plan["batch"]
        self.weightless = plan["stripped"]

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.api.TensorIOMode[self.tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.api.DataType[self.tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name]["shape"])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        rest = self.tensors[name]["shape"][1:]
        return [(size, *rest) for size in self.batch]

    def create_engine_inspector(self) -> Any:
        text = json.dumps({"Layers": self.scenario.layers})
        return SimpleNamespace(get_engine_information=lambda form: text)

    def create_execution_context(self) -> FakeContext | None:
        if "create_execution_context" in self.scenario.refuses:
            return None
        if self.weightless:
            raise MisuseError("a plan without weights was to be run")
        return (RtxContext if self.rtx else FakeContext)(self)


class FakeContext:
    """Checks what TensorRT requires of every run."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.scenario = engine.scenario
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.warm = False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and "set_tensor_address" not in self.scenario.refuses

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.batch
        self.warm = False
        self.shapes[name] = tuple(shape)
        self.scenario.log.append(f"shape {name}{list(shape)}")
        return low <= shape[0] <= high and "set_input_shape" not in self.scenario.refuses

    def infer_shapes(self) -> list[str]:
        return [
            name
            for name, tensor in self.engine.tensors.items()
            if tensor["mode"] == "INPUT" and name not in self.shapes
        ]

    def execute_async_v3(self, stream: int) -> bool:
        driver = self.scenario.driver
        driver.check_current(self.engine.device)
        if type(stream) is not int:
            raise MisuseError("TensorRT takes a stream's number")
        if missing := self.engine.tensors.keys() - self.addresses.keys():
            raise MisuseError(f"no address for {sorted(missing)}")
        if missing := self.infer_shapes():
            raise MisuseError(f"no shape for {missing}")
        if driver.recording(stream) and not self.warm:
            raise MisuseError("the first run of a shape cannot be recorded")
        if "execute_async_v3" in self.scenario.refuses:
            return False
        self.warm = True
        batch = next(iter(self.shapes.values()))[0]
        spans: dict[str, list[tuple[int, int]]] = {"INPUT": [], "OUTPUT": []}
        for name, tensor in self.engine.tensors.items():
            nbytes = self._view_size(name, batch)[0]
            spans[tensor["mode"]].append((self.addresses[name], nbytes))
        driver.kernel(
            stream,
            lambda: self._compute(batch),
            label="engine",
            reads=spans["INPUT"],
            writes=spans["OUTPUT"],
        )
        return True

    def _view_size(self, name: str, batch: int) -> tuple[int, Any, tuple[int, ...]]:
        tensor = self.engine.tensors[name]
        dtype = np.dtype({"FLOAT": np.float32, "UINT8": np.uint8}[tensor["dtype"]])
        shape = tuple(batch if size < 0 else size for size in tensor["shape"])
        return int(np.prod(shape)) * dtype.itemsize, dtype, shape

    def _view(self, name: str, batch: int) -> Array:
        nbytes, dtype, shape = self._view_size(name, batch)
        block = self.scenario.driver.memory.at(self.addresses[name], nbytes)
        return block.data[:nbytes].view(dtype).reshape(shape)

    def _compute(self, batch: int) -> None:
        feeds = {name: self._view(name, batch).copy() for name in self.shapes}
        for name, value in self.scenario.function(feeds).items():
            self._view(name, batch)[...] = value


class RtxContext(FakeContext):
    """Only TensorRT RTX tells whether a run can be recorded."""

    def is_stream_capturable(self, stream: int) -> bool:
        return "is_stream_capturable" not in self.scenario.refuses


@dataclass
class FakeRefitter:
    scenario: Scenario
    engine: FakeEngine

    def refit_cuda_engine(self) -> bool:
        if not self.scenario.refitted:
            raise MisuseError("there is nothing to put in")
        self.engine.weightless = False
        return True

    def get_missing_weights(self) -> list[str]:
        return ["stem1.conv.weight"]


@dataclass
class FakeParserRefitter:
    scenario: Scenario
    refitter: FakeRefitter

    def refit_from_file(self, path: str) -> bool:
        if "refit_from_file" in self.scenario.refuses:
            return False
        self.scenario.refitted = path
        return True
