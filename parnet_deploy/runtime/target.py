"""What a saved ONNX Runtime graph depends on: where it was optimised, it may be opened.

ONNX Runtime lays convolution weights out for the CPU's vectors (NCHWc: 8 channels together with
AVX, 16 with AVX-512), and its internal operators may change from version to version. Another CPU
would not refuse such a graph; it would read the weights wrongly. Reference:
https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

from parnet_deploy.errors import TargetError
from parnet_deploy.runtime.cpu import CPUINFO, check_int8, cpu_flags
from parnet_deploy.runtime.onnxruntime import Provider, load_onnxruntime

_VECTORS: Mapping[str, frozenset[str]] = {  # widest first
    "avx512f": frozenset({"avx512f"}),
    "avx2": frozenset({"avx2", "fma"}),
    "avx": frozenset({"avx"}),
    "sse2": frozenset({"sse2"}),
    "sme": frozenset({"sme"}),
    "neon": frozenset({"asimd"}),
}

_WORDS = {
    "onnxruntime": "ONNX Runtime",
    "provider": "provider",
    "architecture": "CPU architecture",
    "vectors": "CPU vector instructions",
}


def saved_graph_target(provider: Provider) -> dict[str, str]:
    """What of this machine a graph that is optimised and saved here depends on.

    Raises:
        MissingDependencyError: ONNX Runtime cannot be imported.
    """
    target = {"onnxruntime": str(load_onnxruntime().__version__), "provider": provider}
    if provider == "cpu":
        target |= {"architecture": platform.machine(), "vectors": vector_instructions()}
    return target


def check_target(recorded: Mapping[str, object], provider: Provider) -> None:
    """Compare an engine's target with this machine.

    Raises:
        TargetError: they differ; the message says in what.
    """
    check_int8(recorded)
    here = saved_graph_target(provider)
    if found := [
        f"{_WORDS[key]} {recorded.get(key, 'unknown')} (here: {value})"
        for key, value in here.items()
        if recorded.get(key) != value
    ]:
        raise TargetError(f"it was optimised for {', '.join(found)}")


def vector_instructions(cpuinfo: Path = CPUINFO) -> str:
    """The widest vector instructions of this CPU that ONNX Runtime lays weights out for.

    Args:
        cpuinfo: where Linux describes its CPUs; elsewhere the CPU's own name stands in.
    """
    has = cpu_flags(cpuinfo)
    if has is None:
        return platform.processor() or "unknown"
    return next((kind for kind, needed in _VECTORS.items() if needed <= has), "none")
