"""The peak figures of the devices that this machine has."""

from __future__ import annotations

import re

from parnet_deploy.errors import UsageError
from parnet_deploy.roofline import Device, known_gpu, probe_cpu
from parnet_deploy.runtime.cpu import read_cpu
from parnet_deploy.runtime.machine import cuda_driver


def figures_of(device: str) -> Device | None:
    """A device's figures: a GPU's from the table, by the driver's name of it; a CPU's measured.

    A GPU that is not in the table has none: measuring them takes kernels of our own.

    Args:
        device: ``cpu``, or ``cuda:0`` ...

    Raises:
        UsageError: it is neither, or there is no such GPU here.
    """
    if device == "cpu":
        cpu = read_cpu()
        return probe_cpu(cpu.name, cpu.cores)
    return known_gpu(gpu_name(device))


def gpu_name(device: str) -> str:
    """What the driver calls a GPU.

    Raises:
        UsageError: that is no GPU's number, or there is no such GPU here.
    """
    match = re.fullmatch(r"cuda:(\d+)", device)
    if match is None:
        raise UsageError(f"a device is cpu, or cuda:N such as cuda:0; not '{device}'")
    driver = cuda_driver()
    for gpu in driver.gpus:
        if gpu.index == int(match[1]):
            return gpu.name
    there = ", ".join(f"cuda:{gpu.index}" for gpu in driver.gpus)
    found = f"there are {there}" if there else driver.problem
    raise UsageError(f"there is no {device} here: {found}")
