"""How an engine was built, read back from its manifest: the inverse of the builders' `options()`.

Every backend records options with the names of its own flags; here they get the names of
`parnet_deploy.engine.BuildOptions` again. Nowhere else are those flags' names known twice.
"""

from __future__ import annotations

from typing import Any

from parnet_deploy.bundle.manifest import EngineManifest

SPIN_CHOSEN = "intra_op_spinning_chosen"
"""Recorded where somebody chose whether threads spin, even if it is what they do by themselves."""

_THREADS = ("intra_op_num_threads", "INFERENCE_NUM_THREADS", "num_threads")
"""What ONNX Runtime, OpenVINO and ncnn call the number of threads."""

_VALUES = {
    "builder_optimization_level": "optimization_level",
    "workspace_mib": "workspace_mib",
    "max_aux_streams": "aux_streams",
    "narrow_weights": "narrow_weights",
}
"""What builders record where it was given: numbers of TensorRT's, a choice of ONNX Runtime's."""

_FLAGS = {
    "TF32": "tf32",
    "VERSION_COMPATIBLE": "version_compatible",
    "STRIP_PLAN": "weight_stripped",
}
"""Flags of TensorRT's builders."""


def recorded_fields(manifest: EngineManifest) -> dict[str, Any]:
    """What was chosen of how an engine was built, by the names of fields of `BuildOptions`.

    What was left at its default is left out. The provider is the one that was settled on, devices
    are those that the stages lie on. The file of a timing cache is not recorded.
    """
    options, target = manifest.options, manifest.target
    found: dict[str, Any] = {}
    if (provider := target.get("provider")) in ("cpu", "cuda"):
        found["provider"] = provider
    if devices := _devices(manifest):
        found["devices"] = devices
    if threads := next((options[name] for name in _THREADS if options.get(name)), 0):
        found["threads"] = int(threads)
    if (spin := _spin(manifest)) is not None:
        found["spin"] = spin
    capabilities = target.get("compute_capabilities", ())
    # "8.0+", Ampere and later, is what a plan is for if none is named.
    named = tuple(cc for cc in map(str, capabilities) if not cc.endswith("+"))
    if named and manifest.backend == "tensorrt-rtx":  # TensorRT's is that of the GPU it found
        found["compute_capabilities"] = named
    found |= {field: options[name] for name, field in _VALUES.items() if name in options}
    if options.get("hardware_compatibility_level") is not None:
        found["hardware_compatible"] = True
    flags = options.get("builder_flags", ())
    return found | {field: True for name, field in _FLAGS.items() if name in flags}


def _devices(manifest: EngineManifest) -> tuple[int, ...]:
    """Numbers of the GPUs, in the order of the stages."""
    names = dict.fromkeys(stage.device for stage in manifest.stages)
    return tuple(int(name.removeprefix("cuda:")) for name in names if name.startswith("cuda:"))


def _spin(manifest: EngineManifest) -> bool | None:
    """Whether threads were told to spin or not to; None where nobody told them."""
    spins = manifest.options.get("intra_op_spinning")
    by_itself = manifest.target.get("provider") == "cpu" and not manifest.split
    if spins is None or (spins == by_itself and not manifest.options.get(SPIN_CHOSEN)):
        return None
    return bool(spins)
