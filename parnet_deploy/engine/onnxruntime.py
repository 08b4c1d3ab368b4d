"""ONNX Runtime engines: a session optimised once, and saved.

The saved graph has its convolutions fused and their weights laid out for this CPU, so that opening
it costs a read instead of an optimisation. Its weights lie in a file of their own beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from parnet_deploy.bundle import SPIN_CHOSEN, EngineStage, versions
from parnet_deploy.engine.base import BuildOptions, BuildStage
from parnet_deploy.engine.onnxruntime_weights import with_halved_weights
from parnet_deploy.errors import BuildError, BundleError, EngineError, UsageError
from parnet_deploy.runtime.cpu import int8_overflows, int8_target
from parnet_deploy.runtime.machine import provider_problem
from parnet_deploy.runtime.onnxruntime import (
    Provider,
    has_half_kernels,
    open_session,
    session_options,
)
from parnet_deploy.runtime.target import saved_graph_target
from parnet_deploy.spec import Backend
from parnet_deploy.spec.targets import TAKES

EXTERNAL_BYTES = 1024  # smaller weights stay in the graph

_CONVOLVES: Mapping[Provider, tuple[str, ...]] = {
    "cpu": TAKES["onnxruntime"],
    "cuda": ("fp32", "fp16"),
}
"""Precisions of graphs whose convolutions it can run. It has none in bfloat16 and float8."""

_WRITING_FAILED = ("Failed to write", "serialization failed")  # its words: of weights, of a graph


class OnnxRuntimeBuilder:
    """Saves optimised graphs for one execution provider."""

    backend: Backend = "onnxruntime"

    def __init__(
        self, options: BuildOptions, *, split: bool = False, precision: str = "fp32"
    ) -> None:
        """Settle on a provider.

        Args:
            options: how to build.
            split: whether these are stages that run side by side: their threads sleep while they
                wait, since one that spins takes the core that another stage's needs.
            precision: of the graphs: where nothing else is said, the provider is one that runs it.

        Raises:
            UsageError: GPUs are named, and the provider that was asked for uses none.
            EngineError: the provider that was asked for does not run here.
        """
        self.provider = _provider(options, precision)
        self.threads = options.threads
        self._int8: dict[str, str] = {}
        own = self.provider == "cpu" and not split
        self.spin = own if options.spin is None else options.spin
        self.narrow = options.narrow_weights
        self._spin_chosen = options.spin is not None
        self.label = f"onnxruntime-{self.provider}"
        gpus = tuple(f"cuda:{device}" for device in options.devices or (0,))
        self.devices = gpus if self.provider == "cuda" else ("cpu",)

    def target(self) -> Mapping[str, str]:
        """Version, provider and CPU: what a saved graph depends on."""
        return saved_graph_target(self.provider) | self._int8

    def options(self) -> Mapping[str, int | str]:
        """Session options that are set again where the engine is opened."""
        return {
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "intra_op_num_threads": self.threads,
            "intra_op_spinning": self.spin,
            **({SPIN_CHOSEN: True} if self._spin_chosen else {}),
            **({"narrow_weights": True} if self.narrow else {}),
        }

    def tools(self) -> Mapping[str, str]:
        """Version of the ONNX Runtime package, whichever of the two it is."""
        return versions("onnxruntime-gpu", "onnxruntime")

    def computes(self, precision: str) -> str:
        """On a CPU float32 and int8: what its kernels there take. It casts graphs in float16.

        On Arm it has some kernels in float16, so that such graphs are computed in both.

        Raises:
            EngineError: it has no convolutions in that precision.
        """
        if precision not in _CONVOLVES[self.provider]:
            raise EngineError(_no_kernels(self.provider, precision))
        if precision == "fp16" and self.provider == "cpu" and not has_half_kernels():
            return "fp32"
        return precision

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        """Optimise one graph and save it. See `Builder.build`."""
        saved = folder / f"{stage.name}.onnx"
        threads = self.threads or stage.threads
        options = session_options(threads=threads, optimise=True, spin=self.spin)
        options.optimized_model_filepath = str(saved)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{stage.name}.weights"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_BYTES)
        )
        device = _device_id(stage.device)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                graph = stage.graph
                if stage.precision == "int8":
                    self._int8 = int8_target()
                if stage.precision == "int8" and int8_overflows():
                    if self.narrow:
                        graph = with_halved_weights(graph, Path(scratch))
                    # Beyond 7 bits it makes weights uint8, too: slower, and right.
                    options.add_session_config_entry("session.x64quantprecision", "1")
                open_session(graph, options, self.provider, device)
            # Opened once as it will be opened later: a file cut short is noticed here.
            again = session_options(threads=threads, optimise=False, spin=self.spin)
            open_session(saved, again, self.provider, device)
        except EngineError as exc:
            raise _build_error(stage, exc) from exc
        return EngineStage(
            name=stage.name,
            file=saved.name,
            device=stage.device,
            inputs=stage.inputs,
            outputs=stage.outputs,
            threads=threads or None,
        )


def _provider(options: BuildOptions, precision: str) -> Provider:
    """The provider that was asked for, or the fastest that runs here."""
    if options.provider == "cpu" and options.devices:
        raise UsageError(
            "--devices names GPUs, and --provider cpu uses none; leave one of them out"
        )
    only_cpu = precision in _CONVOLVES["cpu"] and precision not in _CONVOLVES["cuda"]
    if options.provider == "cpu" or (
        options.provider == "auto" and not options.devices and only_cpu
    ):
        return "cpu"
    problem = provider_problem("cuda")
    if problem is None:
        return "cuda"
    if options.provider == "cuda" or options.devices:
        asked = "--provider cuda" if options.provider == "cuda" else "--devices"
        raise EngineError(
            f"{asked} needs ONNX Runtime's CUDA provider, which does not run here: {problem}; "
            "'parnet-deploy doctor' says what to install, and --provider cpu needs no GPU"
        )
    return "cpu"


def _no_kernels(provider: Provider, precision: str) -> str:
    """Why graphs of a precision cannot be run, and what can run them."""
    where = "on a CPU" if provider == "cpu" else "on GPUs"
    ways = {
        "bf16": "build it with --backend openvino, tensorrt or tensorrt-rtx",
        "int8": "build it with --provider cpu, or export it --for tensorrt",
        "fp8": "build it with --backend tensorrt or tensorrt-rtx, for GPUs of compute capability "
        "8.9 or later",
    }
    way = ways.get(precision, "export it with --precision fp32")
    return f"ONNX Runtime has no convolutions in {precision} {where}: {way}"


def _device_id(device: str) -> int:
    return int(device.removeprefix("cuda:")) if device.startswith("cuda:") else 0


def _build_error(stage: BuildStage, exc: EngineError) -> BuildError | BundleError:
    if any(sign in str(exc.__cause__) for sign in _WRITING_FAILED):
        return BundleError(f"ONNX Runtime could not write '{stage.name}': is the disk full?")
    return BuildError(f"'{stage.name}' could not be built for {stage.device}: {exc}")
