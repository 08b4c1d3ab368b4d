"""OpenVINO engines: graphs in OpenVINO's own format (IR), with the weights as the graphs have them.

Not what OpenVINO compiles for one CPU: that opens no faster (docs/engines.md) and runs only with
the version and the vector instructions that it was compiled with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parnet_deploy.bundle import EngineStage, versions
from parnet_deploy.engine.base import BuildOptions, BuildStage
from parnet_deploy.engine.openvino_weights import halve_weights
from parnet_deploy.errors import BuildError, BundleError, EngineError
from parnet_deploy.runtime.cpu import int8_overflows, int8_target
from parnet_deploy.runtime.openvino import (
    PROPERTIES,
    OpenVinoRunner,
    has_bfloat16,
    load_openvino,
    openvino_target,
    read_model,
)
from parnet_deploy.spec import Backend
from parnet_deploy.spec.targets import TAKES


class OpenVinoBuilder:
    """Writes graphs in OpenVINO's format."""

    backend: Backend = "openvino"
    label = "openvino-cpu"
    devices = ("cpu",)

    def __init__(self, options: BuildOptions, *, split: bool = False) -> None:
        """Make sure that what is built here can be opened here.

        Args:
            options: how to build.
            split: whether these are stages that run side by side: their threads are not pinned
                to cores, since OpenVINO would pin those of every stage to the same ones.

        Raises:
            MissingDependencyError: OpenVINO is not installed.
        """
        self._openvino = load_openvino()
        self.threads = options.threads
        self._int8: dict[str, str] = {}
        self.pin = False if split else None

    def target(self) -> Mapping[str, str]:
        """The version that writes the files; later ones read them, on any CPU but for int8."""
        return openvino_target() | self._int8

    def options(self) -> Mapping[str, str | int | bool]:
        """Properties that are set again where the engine is opened."""
        pinning = {} if self.pin is None else {"ENABLE_CPU_PINNING": self.pin}
        return {**PROPERTIES, "INFERENCE_NUM_THREADS": self.threads, **pinning}

    def tools(self) -> Mapping[str, str]:
        """Version of OpenVINO."""
        return versions("openvino")

    def computes(self, precision: str) -> str:
        """What it is told to, and asked again; in bfloat16 where this CPU has it.

        Without it graphs in bfloat16 are computed in float32, and so are those in float16.

        Raises:
            EngineError: it computes in no such precision on a CPU.
        """
        if precision not in TAKES["openvino"]:
            raise EngineError(
                f"OpenVINO has no convolutions in {precision} on a CPU: build it with --backend "
                "tensorrt or tensorrt-rtx, or export it with --precision int8 --for openvino"
            )
        if precision == "int8":
            return "int8"
        return "bf16" if precision == "bf16" and has_bfloat16() else "fp32"

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        """Read one graph and write it. See `Builder.build`."""
        saved = folder / f"{stage.name}.xml"
        threads = self.threads or stage.threads
        try:
            model = read_model(stage.graph)
        except EngineError as exc:
            raise BuildError(f"'{stage.name}' could not be read: {exc}") from exc
        if stage.precision == "int8":
            self._int8 = int8_target()
            if int8_overflows():
                halve_weights(model)
        try:
            self._openvino.save_model(model, saved, compress_to_fp16=False)
        except RuntimeError as exc:
            raise BundleError(
                f"OpenVINO could not write '{stage.name}': is the disk full?"
            ) from exc
        try:  # Opened once as it will be opened later: a file cut short is noticed here.
            OpenVinoRunner(
                saved,
                inputs=stage.inputs,
                outputs=stage.outputs,
                threads=threads,
                pin=self.pin,
                computes=self.computes(stage.precision),
            ).close()
        except EngineError as exc:
            raise BuildError(
                f"'{stage.name}' could not be built for {stage.device}: {exc}"
            ) from exc
        return EngineStage(
            name=stage.name,
            file=saved.name,
            device=stage.device,
            inputs=stage.inputs,
            outputs=stage.outputs,
            threads=threads or None,
        )
