"""What backends compute in: the one table of which precision is for which target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parnet_deploy.errors import SpecError
from parnet_deploy.spec.form import Backend
from parnet_deploy.spec.precision import PRECISIONS, Precision

TAKES: Mapping[Backend, tuple[Precision, ...]] = {
    "tensorrt": PRECISIONS,
    "tensorrt-rtx": PRECISIONS,
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "ncnn": ("fp32",),
}
"""Precisions of the graphs that each backend builds engines of, on whatever it runs on. A device
may lack some: GPUs do (`runtime.tensorrt_target.LEAST_CAPABILITY`), ONNX Runtime has no int8 on
GPUs, and what a CPU does not have is computed in float32 there."""

ON_CPU: tuple[Backend, ...] = ("onnxruntime", "openvino", "ncnn")
"""Backends that run without a GPU, in the order in which they are preferred; docs/engines.md says
what each is for. Each is installed by the package of its name."""

NAMES: Mapping[Backend, str] = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT RTX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
}
"""What they are called by their makers."""


def check_precision(precision: Precision, backend: Backend) -> None:
    """Refuse a precision that a backend builds nothing of.

    Raises:
        SpecError: the message says what it takes, and who takes that precision.
    """
    if precision in TAKES[backend]:
        return
    others = [name for name, known in TAKES.items() if precision in known]
    raise SpecError(
        f"{backend} does not compute in {precision}: choose --precision "
        f"{_listed(TAKES[backend])}, or another backend ({_listed(others)})"
    )


def _listed(words: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *some, last = words
    return f"{', '.join(some)} or {last}" if some else last
