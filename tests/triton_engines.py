"""Engines that repositories for Triton are written of, and what is written, as Triton reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from parnet_deploy.bundle import EngineBundle, EngineStage, ModelBundle
from parnet_deploy.engine import BuildOptions, BuildStage, build_engine, make_builder
from parnet_deploy.runtime.tensorrt_target import PlanTarget
from parnet_deploy.serve.triton import RepositorySettings, write_repository
from parnet_deploy.spec import Backend

VERSION = "10.13.3.9"


class PlanStamp:
    """Writes plans that are none, for GPUs that are not here."""

    def __init__(self, backend: Backend, gpus: int = 3, **target: Any) -> None:
        self.backend: Backend = backend
        self.label = backend
        self.devices = tuple(f"cuda:{number}" for number in range(gpus))
        self._target = target

    def target(self) -> Mapping[str, Any]:
        if not self.backend.startswith("tensorrt"):
            return {}
        given: dict[str, Any] = {
            "flavour": self.backend,
            "version": VERSION,
            "compute_capabilities": ("8.6",),
        }
        return PlanTarget(**(given | self._target)).to_json()

    def options(self) -> Mapping[str, Any]:
        return {}

    def tools(self) -> Mapping[str, str]:
        return {}

    def computes(self, precision: str) -> str:
        return precision

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        path = folder / f"{stage.name}.plan"
        path.write_bytes(f"the plan of {stage.name}".encode())
        return EngineStage(
            name=stage.name,
            file=path.name,
            device=stage.device,
            inputs=stage.inputs,
            outputs=stage.outputs,
        )


def stamp_engine(
    model: ModelBundle,
    final: Path,
    *,
    split: bool,
    backend: Backend = "tensorrt",
    placement: Mapping[str, str] | None = None,
    **target: Any,
) -> EngineBundle:
    """An engine whose plans are stamps, spread over three GPUs."""
    return build_engine(
        model, final, PlanStamp(backend, **target), split=split, placement=placement
    )


def cpu_engine(model: ModelBundle, final: Path, *, split: bool, threads: int = 1) -> EngineBundle:
    """An ONNX Runtime engine for this CPU."""
    options = BuildOptions(provider="cpu", threads=threads)
    return build_engine(
        model, final, make_builder("onnxruntime", options, split=split), split=split
    )


def read_config(repository: Path, model: str) -> Any:
    """A model's configuration as Triton reads it: text of the message ``ModelConfig``."""
    text = (repository / model / "config.pbtxt").read_text(encoding="ascii")
    return text_format.Parse(text, pb.ModelConfig())


def write(bundle: EngineBundle, final: Path, **settings: Any) -> Path:
    """A repository of an engine at `final`."""
    write_repository(bundle, final, RepositorySettings(**settings))
    return final
