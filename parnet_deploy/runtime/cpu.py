"""This machine's CPU: its name, the cores that may be used, and what it can do with vectors."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.errors import TargetError

CPUINFO = Path("/proc/cpuinfo")

_TOLD = (
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sme",
)
"""Features, by Linux's names, for which ONNX Runtime has kernels of their own."""

SAFE_WEIGHT = 64
"""Greatest int8 weight that cannot make products with uint8 overflow: 255 * 64, twice, is 32640."""

_WIDE_SUMS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
"""Instructions on x86 that add products of bytes in 32 bits."""


INT8, WIDE = "int8", "sums in 32 bits"
"""Entry of a target: an engine in int8 that needs a CPU with VNNI."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """A CPU.

    Attributes:
        name: what its maker calls it, or its architecture.
        architecture: such as ``x86_64``.
        cores: cores that this process may use.
        features: those of its features that matter for speed here.
    """

    name: str
    architecture: str
    cores: int
    features: tuple[str, ...]


def read_cpu(cpuinfo: Path = CPUINFO) -> Cpu:
    """Ask the system.

    Args:
        cpuinfo: where Linux describes its CPUs; elsewhere there is none, and less is known.
    """
    fields = _fields(cpuinfo)
    has = cpu_flags(cpuinfo) or frozenset()
    return Cpu(
        name=fields.get("model name") or platform.processor() or platform.machine() or "unknown",
        architecture=platform.machine() or "unknown",
        cores=usable_cores(),
        features=tuple(name for name in _TOLD if name in has),
    )


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """All features by Linux's names, or None where they are not told."""
    fields = _fields(cpuinfo)
    flags = fields.get("flags", fields.get("Features"))
    return None if flags is None else frozenset(flags.split())


def int8_overflows(cpuinfo: Path = CPUINFO) -> bool:
    """Whether products of uint8 with int8 can overflow on this CPU.

    x86 without VNNI adds two of them in 16 bits (``vpmaddubsw``), which end at 32767:
    2 * 255 * 127 is more, 2 * 255 * 64 is not. ONNX Runtime and OpenVINO use it all the same. Where
    the system does not say what its CPU has, it is taken to lack VNNI.

    Args:
        cpuinfo: where Linux describes its CPUs.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return _WIDE_SUMS.isdisjoint(cpu_flags(cpuinfo) or ())


def int8_target() -> dict[str, str]:
    """What an engine in int8 that is built here depends on, for its manifest's target."""
    return {} if int8_overflows() else {INT8: WIDE}


def has_narrow_weights(
    backend: str, target: Mapping[str, object], options: Mapping[str, object]
) -> bool:
    """Whether an engine in int8 has weights in 7 bits, since 8 overflow where it was built.

    Args:
        backend: that it was built for.
        target: what its manifest says that it depends on.
        options: how it was built, by its manifest.
    """
    if backend == "onnxruntime" and not options.get("narrow_weights"):
        return False  # it makes them uint8 where they would overflow
    return backend in ("onnxruntime", "openvino") and target.get(INT8) != WIDE


def check_int8(recorded: Mapping[str, object], cpuinfo: Path = CPUINFO) -> None:
    """Refuse an engine whose sums would overflow here, and say nothing of it.

    Args:
        recorded: the engine's target.
        cpuinfo: where Linux describes its CPUs.

    Raises:
        TargetError: it was built for a CPU with VNNI, and this one has none.
    """
    if recorded.get(INT8) == WIDE and int8_overflows(cpuinfo):
        raise TargetError(
            "it is in int8 for CPUs with VNNI, and on this one, which has none, its sums would "
            "overflow"
        )


def _fields(cpuinfo: Path) -> dict[str, str]:
    """What is said of the first CPU."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(core_numbers())


def core_numbers() -> tuple[int, ...]:
    """Which they are, by the system's numbers."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
