"""TensorRT and TensorRT RTX engines: plans, built from ONNX by one code for both.

The module's own API is used, not Polygraphy's loaders: see ``runtime.tensorrt_api``. References:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html and
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parnet_deploy.bundle import BatchRange, EngineStage, versions
from parnet_deploy.engine.base import BuildOptions, BuildStage
from parnet_deploy.engine.tensorrt.inspect import count_layers
from parnet_deploy.engine.tensorrt.options import check_options, check_precision, flag_names
from parnet_deploy.engine.tensorrt.settings import apply_options, save_timing_cache
from parnet_deploy.errors import BuildError, BundleError
from parnet_deploy.interrupts import held_back
from parnet_deploy.runtime.cuda.device import CudaDevice, find_gpu
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.plan_text import read_plan_text
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend, load_api, message_log
from parnet_deploy.runtime.tensorrt_target import AMPERE_AND_LATER, PlanTarget
from parnet_deploy.spec import Backend
from parnet_deploy.spec.targets import NAMES


class TensorRTBuilder:
    """Builds raw plans, which trtexec loads too.

    TensorRT builds for the GPU that it finds here. TensorRT RTX needs none: it builds for the
    compute capabilities that it is given.
    """

    def __init__(
        self,
        backend: TensorRTBackend,
        options: BuildOptions,
        *,
        api: Any = None,
        find: Callable[[int], Gpu] = find_gpu,
        use_gpu: Callable[[int], CudaDevice] = CudaDevice,
    ) -> None:
        """Settle on a target.

        Args:
            backend: which flavour of TensorRT.
            options: how to build.
            api: its module; loaded where None.
            find: gives the GPU of a number.
            use_gpu: takes the GPU of a number and makes it the one that TensorRT builds on.

        Raises:
            MissingDependencyError: it is not installed.
            UsageError: an option does not apply, or the version at hand does not have it.
            EngineError: TensorRT, and there is no GPU.
            BuildError: TensorRT, and the GPUs that were named differ.
        """
        self.backend: Backend = backend
        self._flavour = backend
        self._api = api or load_api(backend)
        check_options(backend, self._api, options)
        self._options = options
        self._use_gpu = use_gpu
        self.devices = tuple(f"cuda:{number}" for number in options.devices or (0,))
        self._gpu = None if backend == "tensorrt-rtx" else self._one_kind_of_gpu(find)
        self._target = self._settle()
        self.label = f"{backend}-{_label(self._target.compute_capabilities)}"

    def target(self) -> Mapping[str, Any]:
        """What the plans need where they are opened."""
        return self._target.to_json()

    def options(self) -> Mapping[str, Any]:
        """Names of the flags that are on, and what else was set."""
        given = self._options
        level = "AMPERE_PLUS" if given.hardware_compatible else None
        settings = {
            "hardware_compatibility_level": level,
            "builder_optimization_level": given.optimization_level,
            "workspace_mib": given.workspace_mib,
            "max_aux_streams": given.aux_streams,
        }
        return {
            "network_flags": ["STRONGLY_TYPED"],
            "builder_flags": list(flag_names(self._flavour, self._api, given)),
            "profiling_verbosity": "DETAILED",
            **{name: value for name, value in settings.items() if value is not None},
        }

    def tools(self) -> Mapping[str, str]:
        """Version of TensorRT."""
        return {self.backend: str(self._api.__version__), **versions("cuda-bindings")}

    def computes(self, precision: str) -> str:
        """The graphs' own precision: networks are strongly typed. Float32 may be TF32.

        Raises:
            EngineError: a GPU that it builds for has no arithmetic in that precision.
        """
        check_precision(precision, self._target)
        return "tf32" if precision == "fp32" and self._options.tf32 else precision

    def build(self, stage: BuildStage, folder: Path) -> EngineStage:
        """Build one plan. See `Builder.build`."""
        path = folder / f"{stage.name}.plan"
        with contextlib.ExitStack() as used:
            if self._gpu is not None:
                used.callback(self._use_gpu(_number(stage.device)).close)
            plan = self._build(stage)
            try:
                path.write_bytes(plan)
            except OSError as exc:
                raise BundleError(f"cannot write {path.name}: {exc.strerror or exc}") from exc
            kernels, streams = self._count(path, plan)
        return EngineStage(
            name=stage.name,
            file=path.name,
            device=stage.device,
            inputs=stage.inputs,
            outputs=stage.outputs,
            kernels=kernels,
            streams=streams,
        )

    def _build(self, stage: BuildStage) -> Any:
        """The plan of a stage, as bytes."""
        api, log = self._api, message_log(self._api)
        try:
            builder = api.Builder(log)
            with held_back():
                network = _parse(api, builder, log, stage)
            config = builder.create_builder_config()
            apply_options(self._flavour, api, config, self._options)
            if stage.batch.dynamic:
                _add_profile(builder, config, network, stage.batch)
            with held_back():
                plan = builder.build_serialized_network(network, config)
        except (RuntimeError, TypeError) as exc:  # how its bindings report a failed constructor
            raise BuildError(f"{self._cannot(stage)}: {log.last_errors()}") from exc
        if plan is None:
            raise BuildError(f"{self._cannot(stage)}: {log.last_errors()}{self._hint()}")
        if self._options.timing_cache is not None:
            save_timing_cache(config, self._options.timing_cache)
        return plan

    def _count(self, path: Path, plan: Any) -> tuple[int | None, int | None]:
        """Kernels and streams of a plan, where it tells."""
        if self.backend == "tensorrt":
            return count_layers(self._api, plan)
        text = read_plan_text(path)
        return (None, None) if text is None else (len(text.kernels), text.streams)

    def _cannot(self, stage: BuildStage) -> str:
        name = f"{NAMES[self._flavour]} {self._api.__version__}"
        return f"{name} cannot build '{stage.name}' for {self._target.gpus}"

    def _hint(self) -> str:
        if self._options.weight_stripped and self.backend == "tensorrt-rtx":
            return "; weight-stripped plans of TensorRT RTX need a GPU here, all others do not"
        return ""

    def _one_kind_of_gpu(self, find: Callable[[int], Gpu]) -> Gpu:
        gpus = [find(_number(device)) for device in self.devices]
        kinds = {(gpu.name, gpu.compute_capability) for gpu in gpus}
        if len(kinds) > 1:
            names = ", ".join(sorted(f"{name} ({cc})" for name, cc in kinds))
            raise BuildError(
                f"TensorRT builds for one kind of GPU at a time, and --devices names {names}; "
                "name GPUs of one kind, or use --backend tensorrt-rtx with --compute-capability"
            )
        return gpus[0]

    def _settle(self) -> PlanTarget:
        given, gpu = self._options, self._gpu
        if gpu is None:
            capabilities = given.compute_capabilities or (AMPERE_AND_LATER,)
        else:
            capabilities = (
                (AMPERE_AND_LATER,) if given.hardware_compatible else (gpu.compute_capability,)
            )
        return PlanTarget(
            flavour=self._flavour,
            version=str(self._api.__version__),
            compute_capabilities=capabilities,
            gpu=None if gpu is None or given.hardware_compatible else gpu.name,
            version_compatible=given.version_compatible,
            weights="stripped" if given.weight_stripped else "included",
        )


def _parse(api: Any, builder: Any, log: Any, stage: BuildStage) -> Any:
    """A stage's graph as a network.

    Raises:
        BuildError: the parser refuses; every one of its errors is in the message.
    """
    # TensorRT 11 has strongly typed networks only and ignores the flag; 10 needs it.
    strongly_typed = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = api.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(stage.graph))
    errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
    if not parsed or errors:
        reasons = "; ".join(errors) or log.last_errors()
        raise BuildError(f"the graph of '{stage.name}' cannot be read: {reasons}")
    return network


def _parser_error(error: Any) -> str:
    text = " ".join(str(error.desc()).split())
    node = str(error.node_name())
    return f"node '{node}' ({error.node_operator()}): {text}" if node else text


def _add_profile(builder: Any, config: Any, network: Any, batch: BatchRange) -> None:
    """One optimization profile: the batch's range for every input.

    Raises:
        BuildError: TensorRT refuses it.
    """
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (batch.min, *rest), (batch.opt, *rest), (batch.max, *rest))
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"TensorRT refuses the batch {batch.min}:{batch.opt}:{batch.max}")


def _label(capabilities: tuple[str, ...]) -> str:
    """``sm86-sm120``, or ``sm80-plus`` for "that and later"."""
    return "-".join(f"sm{cc.replace('.', '').replace('+', '-plus')}" for cc in capabilities)


def _number(device: str) -> int:
    return int(device.removeprefix("cuda:"))
