"""Doubles of TensorRT's builder, its configuration, networks and parser."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import onnx

from doubles.scenario import Scenario, make_plan
from parnet_deploy.runtime.simulated.work import MisuseError
from parnet_deploy.spec import TensorSpec


class FakeConfig:
    """Takes the settings that its version has, and no others."""

    def __init__(self, api: Any, scenario: Scenario, rtx: bool) -> None:
        known = {"profiling_verbosity", "builder_optimization_level", "max_aux_streams"}
        known |= {"num_compute_capabilities"} if rtx else {"hardware_compatibility_level"}
        vars(self).update(
            flags={"TF32"}, pools={}, capabilities={}, profiles=[], cache=None, known=known,
            scenario=scenario, rtx=rtx,
        )  # fmt: skip

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.known:
            raise MisuseError(f"this version's IBuilderConfig has no {name}")
        vars(self)[name] = value

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        self.pools[pool.name] = nbytes

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        if not index < self.num_compute_capabilities:
            raise MisuseError("num_compute_capabilities is set first")
        self.capabilities[index] = capability.name
        return "set_compute_capability" not in self.scenario.refuses

    def add_optimization_profile(self, profile: Any) -> int:
        if "add_optimization_profile" in self.scenario.refuses:
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data, serialize=lambda: data + b"+timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if ignore_mismatch:
            raise MisuseError("timings of another GPU are not to be used")
        vars(self)["cache"] = cache
        return "set_timing_cache" not in self.scenario.refuses

    def get_timing_cache(self) -> Any:
        return None if "get_timing_cache" in self.scenario.refuses else self.cache


@dataclass
class FakeBuilder:
    api: Any
    scenario: Scenario
    log: Any
    rtx: bool

    def create_network(self, flags: int = 0) -> Any:
        if not flags & 1 << int(self.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
            raise MisuseError("the network is not strongly typed")
        return FakeNetwork()

    def create_builder_config(self) -> FakeConfig:
        self.scenario.config = FakeConfig(self.api, self.scenario, self.rtx)
        return self.scenario.config

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(
            shapes=shapes, set_shape=lambda name, *sizes: shapes.update({name: sizes})
        )

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> Any:
        severity = self.api.ILogger.Severity
        if "build_serialized_network" in self.scenario.refuses:
            self.log.log(severity.INFO, "starting")
            self.log.log(severity.ERROR, "Error Code 4: no tactics\n within workspace limit")
            return None
        return memoryview(make_plan(network.inputs, ()))


@dataclass
class FakeNetwork:
    inputs: tuple[TensorSpec, ...] = ()

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Any:
        spec = self.inputs[index]
        shape = tuple(-1 if isinstance(size, str) else size for size in spec.shape)
        return SimpleNamespace(name=spec.name, shape=shape)


@dataclass
class FakeParser:
    scenario: Scenario
    network: FakeNetwork
    log: Any

    @property
    def num_errors(self) -> int:
        return len(self.scenario.parser_errors)

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path, load_external_data=False).graph
        self.network.inputs = tuple(
            TensorSpec(
                name=value.name,
                shape=tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
                dtype="float32",
            )
            for value in graph.input
        )
        return not self.scenario.parser_errors

    def get_error(self, index: int) -> Any:
        node, operator, text = self.scenario.parser_errors[index]
        return SimpleNamespace(
            desc=lambda: text, node_name=lambda: node, node_operator=lambda: operator
        )
