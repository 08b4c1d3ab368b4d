"""Options written into TensorRT's builder configuration."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from parnet_deploy.engine.base import BuildOptions
from parnet_deploy.engine.tensorrt.options import capability_name, flag_names
from parnet_deploy.errors import BuildError
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend

_MIB = 1 << 20


def apply_options(backend: TensorRTBackend, api: Any, config: Any, options: BuildOptions) -> None:
    """Set everything that is not left to TensorRT.

    Args:
        backend: which flavour of TensorRT.
        api: its module.
        config: a new ``IBuilderConfig``; changed in place.
        options: what to set.

    Raises:
        BuildError: TensorRT refuses a setting, or the timing cache cannot be read.
    """
    config.clear_flag(api.BuilderFlag.TF32)  # on by default
    for name in flag_names(backend, api, options):
        config.set_flag(getattr(api.BuilderFlag, name))
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
    if options.hardware_compatible:
        config.hardware_compatibility_level = api.HardwareCompatibilityLevel.AMPERE_PLUS
    if backend == "tensorrt-rtx":
        _set_capabilities(api, config, options.compute_capabilities)
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache)


def save_timing_cache(config: Any, path: Path) -> None:
    """Write the timings of a build, replacing the file in one step.

    Raises:
        BuildError: there are none, or the file cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is None:
        raise BuildError(f"TensorRT gave no timings to keep in {path}; leave --timing-cache out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(cache.serialize())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise BuildError(f"cannot write the timing cache {path}: {exc.strerror or exc}") from exc


def _set_capabilities(api: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """The GPUs that a plan of TensorRT RTX is for; none means Ampere and later."""
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        member = getattr(api.ComputeCapability, capability_name(capability))
        if not config.set_compute_capability(member, index):
            raise BuildError(f"TensorRT RTX refuses the compute capability {capability}")


def _load_timing_cache(config: Any, path: Path) -> None:
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as exc:
        raise BuildError(f"cannot read the timing cache {path}: {exc.strerror or exc}") from exc
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildError(
            f"the timing cache {path} is damaged or of another GPU or version; delete it"
        )
