"""Peak figures of GPUs, as their vendor prints them: dense, with float32 accumulation.

Where a datasheet prints rates with sparsity only, half of them stand here. Bandwidths of links are
for one direction, half of what is printed for both. What a kernel's launch and a copy's start
cost is printed nowhere: both are assumed (`parnet_deploy.roofline.devices`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from parnet_deploy.roofline.costs import Precision
from parnet_deploy.roofline.devices import HOP_SECONDS, LAUNCH_SECONDS, Device, Link
from parnet_deploy.spec.lookup import lookup

_GA102 = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/geforce/ampere/pdf/"
    "NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"
)
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_L4 = "https://www.nvidia.com/en-us/data-center/l4/"
_L40S = "https://www.nvidia.com/en-us/data-center/l40s/"
_ORIN = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/gtcf21/jetson-orin/"
    "nvidia-jetson-agx-orin-technical-brief.pdf"
)

_PCIE4, _PCIE5 = 32.0, 64.0  # GB/s one way, 16 lanes


def _rates(
    fp32: float,
    *,
    tf32: float | None = None,
    fp16: float | None = None,
    int8: float | None = None,
    fp8: float | None = None,
) -> dict[Precision, float]:
    """Rates in operations per second, from printed ones in 10**12; bfloat16's are float16's."""
    printed: dict[Precision, float | None] = {
        "fp32": fp32,
        "tf32": tf32,
        "fp16": fp16,
        "bf16": fp16,
        "int8": int8,
        "fp8": fp8,
    }
    return {name: rate * 1e12 for name, rate in printed.items() if rate is not None}


def _gpu(
    name: str,
    *,
    memory: float,
    rates: Mapping[Precision, float],
    host: float,
    source: str,
    link: float | None = None,
) -> Device:
    """A row: memory, host and link in GB/s; the link is the host's bus where there is no other."""
    return Device(
        name=name,
        bandwidth=memory * 1e9,
        rates=rates,
        launch=LAUNCH_SECONDS,
        link=Link(bandwidth=(link or host) * 1e9, latency=HOP_SECONDS),
        host=Link(bandwidth=host * 1e9, latency=HOP_SECONDS),
        source=source,
    )


_HOPPER = _rates(67, tf32=495, fp16=989, int8=1979, fp8=1979)
_AMPERE = _rates(19.5, tf32=156, fp16=312, int8=624)

GPUS: Mapping[str, Device] = {
    gpu.name.lower(): gpu
    for gpu in (
        # The whitepaper prints 71 for float16: twice TF32's 35.6, rounded.
        _gpu(
            "RTX 3090",
            memory=936,
            rates=_rates(35.6, tf32=35.6, fp16=71.2, int8=284),
            host=_PCIE4,
            source=_GA102,
        ),
        _gpu(
            "RTX 4090",
            memory=1008,
            rates=_rates(82.6, tf32=82.6, fp16=165.2, int8=660.6, fp8=330.3),
            host=_PCIE4,
            source=_ADA,
        ),
        _gpu(
            "RTX 5090",
            memory=1792,
            rates=_rates(104.8, tf32=104.8, fp16=209.5, int8=838, fp8=419),
            host=_PCIE5,
            source=_BLACKWELL,
        ),
        _gpu("A100 SXM 40GB", memory=1555, rates=_AMPERE, host=_PCIE4, link=300, source=_A100),
        _gpu("A100 SXM 80GB", memory=2039, rates=_AMPERE, host=_PCIE4, link=300, source=_A100),
        _gpu("A100 PCIe 40GB", memory=1555, rates=_AMPERE, host=_PCIE4, source=_A100),
        _gpu("A100 PCIe 80GB", memory=1935, rates=_AMPERE, host=_PCIE4, source=_A100),
        _gpu(
            "H100 PCIe",
            memory=2000,
            rates=_rates(51, tf32=378, fp16=756.5, int8=1513, fp8=1513),
            host=_PCIE5,
            source=_H100,
        ),
        _gpu("H100 SXM", memory=3350, rates=_HOPPER, host=_PCIE5, link=450, source=_H100),
        _gpu("H200", memory=4800, rates=_HOPPER, host=_PCIE5, link=450, source=_H200),
        _gpu(
            "L4",
            memory=300,
            rates=_rates(30.3, tf32=60, fp16=121, int8=242.5, fp8=242.5),
            host=_PCIE4,
            source=_L4,
        ),
        _gpu(
            "L40S",
            memory=864,
            rates=_rates(91.6, tf32=183, fp16=362, int8=733, fp8=733),
            host=_PCIE4,
            source=_L40S,
        ),
        # The host's memory is its own.
        _gpu(
            "Jetson AGX Orin",
            memory=204.8,
            rates=_rates(5.3, int8=85),
            host=204.8,
            source=_ORIN,
        ),
    )
}
"""By name in lower case."""

_DRIVER_NAMES = {
    "a100-sxm4-40gb": "a100 sxm 40gb",
    "a100-sxm4-80gb": "a100 sxm 80gb",
    "a100-pcie-40gb": "a100 pcie 40gb",
    "a100 80gb pcie": "a100 pcie 80gb",
    "h100 80gb hbm3": "h100 sxm",
}
"""What the driver calls some of them. Its "Orin" is any Jetson of that family, so none is meant."""


def gpu_kind(kind: str) -> Device:
    """A GPU by the name that a person wrote: ``RTX 3090``, or what the driver calls it.

    Raises:
        UsageError: there are no figures of it here; the nearest is suggested, all are named.
    """
    return known_gpu(kind) or lookup("GPU in the table of peak figures called", kind, GPUS)


def known_gpu(driver_name: str) -> Device | None:
    """A GPU by the name that its driver gives, None where there are no figures of it here."""
    name = re.sub(r"^(nvidia )?(geforce )?", "", " ".join(driver_name.lower().split()))
    return GPUS.get(_DRIVER_NAMES.get(name, name))
