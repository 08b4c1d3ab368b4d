"""ncnn engines: the layers of a graph as text, and their weights beside it.

Nothing in them depends on the machine: weights are laid out, and transformed for Winograd's
algorithm, when the engine is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from parnet_deploy.bundle import EngineStage, versions
from parnet_deploy.engine.base import BuildOptions, BuildStage
from parnet_deploy.engine.ncnn.convert import convert
from parnet_deploy.errors import BuildError, BundleError, EngineError, RunnerError, os_reason
from parnet_deploy.runtime.ncnn import NcnnRunner, load_ncnn, ncnn_target
from parnet_deploy.spec import Backend
from parnet_deploy.spec.targets import TAKES


class NcnnBuilder:
    """Converts graphs to ncnn layers."""

    backend: Backend = "ncnn"
    label = "ncnn-cpu"
    devices = ("cpu",)

    def __init__(self, options: BuildOptions) -> None:
        """Make sure that what is built here can be opened here.

        Raises:
            MissingDependencyError: ncnn is not installed.
        """
        load_ncnn()
        self.threads = options.threads

    def target(self) -> Mapping[str, str]:
        """The format of the layers: any CPU for which there is an ncnn opens them."""
        return ncnn_target()

    def options(self) -> Mapping[str, int]:
        """Options that are set again where the engine is opened."""
        return {"num_threads": self.threads}

    def tools(self) -> Mapping[str, str]:
        """Versions of ncnn, which tried it, and of onnx, which read the graph."""
        return versions("ncnn", "onnx")

    def computes(self, precision: str) -> str:
        """Float32: it reads no other graphs.

        Raises:
            EngineError: the graphs are in another precision.
        """
        if precision not in TAKES["ncnn"]:
            raise EngineError(
                f"ncnn engines are built from graphs in fp32, and this model is in {precision}: "
                "build it with --backend onnxruntime or openvino, or export one with "
                "--precision fp32"
            )
        return "fp32"

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        """Convert one graph, and let it answer once. See `Builder.build`."""
        param, weights = folder / f"{stage.name}.param", folder / f"{stage.name}.bin"
        threads = self.threads or stage.threads
        layers, outputs = convert(stage.graph, stage.inputs, stage.outputs)
        try:
            layers.write(outputs, param, weights)
        except OSError as exc:
            raise BundleError(f"'{stage.name}' could not be written: {os_reason(exc)}") from exc
        try:
            self._try(param, stage, threads)
        except (EngineError, RunnerError) as exc:
            raise BuildError(
                f"'{stage.name}' could not be built for {stage.device}: {exc}"
            ) from exc
        return EngineStage(
            name=stage.name,
            file=param.name,
            device=stage.device,
            inputs=stage.inputs,
            outputs=stage.outputs,
            threads=threads or None,
        )

    @staticmethod
    def _try(param: Path, stage: BuildStage, threads: int) -> None:
        """Open it as it will be opened later, and let it answer: layers that do not fit show."""
        feeds = {
            spec.name: np.zeros(spec.concrete(stage.batch.min), spec.dtype) for spec in stage.inputs
        }
        with NcnnRunner(
            param, inputs=stage.inputs, outputs=stage.outputs, threads=threads
        ) as runner:
            runner.run(feeds)
