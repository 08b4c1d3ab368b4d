"""TensorRT without TensorRT: doubles of the modules `tensorrt` 10 and 11 and `tensorrt_rtx`.

They have the names that parnet-deploy uses, with the differences between the versions; a test
compares those of `tensorrt_rtx` with the real module. A plan is JSON. An engine computes with a
Python function on a `SimulatedDriver`, as late as a GPU.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

from doubles.scenario import Scenario
from doubles.tensorrt_build import FakeBuilder, FakeParser
from doubles.tensorrt_run import FakeParserRefitter, FakeRefitter, FakeRuntime, RtxRuntime

VERSIONS = {"10": "10.13.3.9", "11": "11.4.0.12", "rtx": "1.7.1.116"}

_FLAGS = {
    "10": "FP16 INT8 DEBUG GPU_FALLBACK REFIT DISABLE_TIMING_CACHE TF32 VERSION_COMPATIBLE "
    "EXCLUDE_LEAN_RUNTIME STRIP_PLAN REFIT_IDENTICAL",
    "11": "TF32 DEBUG REFIT VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME STRIP_PLAN REFIT_IDENTICAL",
    "rtx": "DEBUG REFIT TF32 VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME STRIP_PLAN REFIT_IDENTICAL "
    "REQUIRE_USER_ALLOCATION",
}


def _enum(name: str, members: str) -> Any:
    return enum.IntEnum(name, members.split(), start=0)


def make_api(kind: str, scenario: Scenario) -> Any:
    """The double of a module: ``10``, ``11`` or ``rtx``."""
    rtx = kind == "rtx"
    severity = _enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class ILogger:
        Severity = severity

    api = SimpleNamespace(
        __version__=VERSIONS[kind],
        ILogger=ILogger,
        BuilderFlag=_enum("BuilderFlag", _FLAGS[kind]),
        NetworkDefinitionCreationFlag=_enum(
            "NetworkDefinitionCreationFlag",
            "EXPLICIT_BATCH STRONGLY_TYPED" if kind == "10" else "STRONGLY_TYPED",
        ),
        HardwareCompatibilityLevel=_enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS"),
        ProfilingVerbosity=_enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED"),
        MemoryPoolType=_enum("MemoryPoolType", "WORKSPACE"),
        LayerInformationFormat=_enum("LayerInformationFormat", "ONELINE JSON"),
        TensorIOMode=_enum("TensorIOMode", "NONE INPUT OUTPUT"),
        DataType=_enum("DataType", "FLOAT HALF UINT8"),
    )
    if rtx:
        capability = {"NONE": 0, "CURRENT": 1, "SM80": 80, "SM86": 86, "SM120": 120}
        api.ComputeCapability = enum.IntEnum("ComputeCapability", capability)
        api.EngineValidity = _enum("EngineValidity", "VALID SUBOPTIMAL INVALID")
        api.EngineInvalidityDiagnostics = enum.IntEnum(
            "EngineInvalidityDiagnostics", {"VERSION_MISMATCH": 1, "MALFORMED_ENGINE": 32}
        )
    api.Builder = lambda log: FakeBuilder(api, scenario, log, rtx)
    api.OnnxParser = lambda network, log: FakeParser(scenario, network, log)
    api.Runtime = lambda log: (RtxRuntime if rtx else FakeRuntime)(api, scenario, log, rtx)
    api.Refitter = lambda engine, log: FakeRefitter(scenario, engine)
    api.OnnxParserRefitter = lambda refitter, log: FakeParserRefitter(scenario, refitter)
    return api
