"""A CPU's figures, measured by a short probe: nobody prints them for the cores at hand."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from parnet_deploy.errors import TargetError
from parnet_deploy.roofline.devices import Device, Link
from parnet_deploy.roofline.probe import COPIED, SIZE

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""What limits the threads of some libraries, and of others not: no measure of the same machine."""

PROBE = (sys.executable, "-m", "parnet_deploy.roofline.probe")

_SECONDS = 120.0


@functools.cache
def probe_cpu(name: str, cores: int) -> Device:
    """Measure memory bandwidth and the rate of float32 matrix products, with all cores.

    Once per process, and in one of its own, whose libraries no variable of `THREAD_VARIABLES`
    limits. The bandwidth is that of a copy (bytes read and written), which one thread makes: numpy
    has no other. Beside work that never rests, both are too low.

    Args:
        name: what the CPU is called.
        cores: how many there are to use.

    Raises:
        TargetError: the probe failed.
    """
    copying, multiplying = ask_probe()
    return measured_cpu(name, cores, copying=copying, multiplying=multiplying)


def measured_cpu(name: str, cores: int, *, copying: float, multiplying: float) -> Device:
    """A CPU's figures from the probe's seconds."""
    nowhere = Link(bandwidth=float("inf"), latency=0.0)  # all of it is host memory
    return Device(
        name=f"{name}, {cores} core{'s' * (cores != 1)}",
        bandwidth=2 * COPIED / copying,
        rates={"fp32": 2 * SIZE**3 / multiplying},
        launch=0.0,
        link=nowhere,
        host=nowhere,
        source="measured here: numpy's copy, and its float32 matrix product",
        measured=True,
    )


def ask_probe(command: Sequence[str] = PROBE) -> tuple[float, float]:
    """Run the probe; the seconds that it prints.

    Args:
        command: the program.

    Raises:
        TargetError: it failed, or took too long.
    """
    try:
        done = subprocess.run(
            command,
            env=without_thread_limits(os.environ),
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
        copying, multiplying = json.loads(done.stdout)
        return float(copying), float(multiplying)
    except subprocess.CalledProcessError as exc:
        lines = exc.stderr.decode(errors="replace").strip().splitlines() or ["no words"]
        raise TargetError(
            f"the CPU cannot be measured: the probe ended with status {exc.returncode}: {lines[-1]}"
        ) from exc
    except (OSError, subprocess.TimeoutExpired, ValueError, TypeError) as exc:
        raise TargetError(f"the CPU cannot be measured: {exc}") from exc


def without_thread_limits(environment: Mapping[str, str]) -> dict[str, str]:
    """The same environment without `THREAD_VARIABLES`."""
    return {name: text for name, text in environment.items() if name not in THREAD_VARIABLES}
