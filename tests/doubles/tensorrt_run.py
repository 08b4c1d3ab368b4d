"""Doubles of TensorRT's runtime, engines, contexts and refitter: they check what it requires."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from doubles.cuda import RECORDING, STREAM, MisuseError
from doubles.scenario import Scenario
from parnet_deploy.spec import Array


@dataclass
class FakeRuntime:
    api: Any
    scenario: Scenario
    log: Any
    rtx: bool
    engine_host_code_allowed: bool = False

    def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
        self.scenario.device.check_current()
        self.scenario.log.append(f"deserialize, host code allowed: {self.engine_host_code_allowed}")
        try:
            plan = json.loads(bytes(data))
        except ValueError:
            self.log.log(self.api.ILogger.Severity.ERROR, "magic tag does not match")
            return None
        return FakeEngine(self.api, self.scenario, plan, self.rtx)


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

    def __init__(self, api: Any, scenario: Scenario, plan: dict[str, Any], rtx: bool) -> None:
        self.api, self.scenario, self.rtx = api, scenario, rtx
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
        device = self.scenario.device
        device.check_current()
        if stream != (RECORDING if device.recording else STREAM):
            raise MisuseError(f"stream {stream} is not the one of this run")
        if missing := self.engine.tensors.keys() - self.addresses.keys():
            raise MisuseError(f"no address for {sorted(missing)}")
        if missing := self.infer_shapes():
            raise MisuseError(f"no shape for {missing}")
        if device.recording and not self.warm:
            raise MisuseError("the first run of a shape cannot be recorded")
        if "execute_async_v3" in self.scenario.refuses:
            return False
        self.warm = True
        shapes = dict(self.shapes)
        device.put(lambda: self._compute(shapes))
        return True

    def _compute(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        def view(name: str, shape: tuple[int, ...]) -> Array:
            dtype = {"FLOAT": np.float32, "UINT8": np.uint8}[self.engine.tensors[name]["dtype"]]
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            memory = self.scenario.device.at(self.addresses[name])
            if size > memory.nbytes:
                raise MisuseError(f"the memory of {name} is too small")
            return memory[:size].view(dtype).reshape(shape)

        feeds = {name: view(name, shape).copy() for name, shape in shapes.items()}
        for name, value in self.scenario.function(feeds).items():
            view(name, value.shape)[...] = value


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
