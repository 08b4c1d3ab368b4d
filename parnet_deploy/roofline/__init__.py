"""What a network costs on a device at least, and what a split is expected to take there.

costs     operations and bytes of every block
devices   Device: a device's peak figures, and the links between devices
gpus      those of common GPUs, with the vendor's page that each is from
cpu       those of a CPU, measured by a probe
floor     the least time that they allow a network
latency   a placement played through: stages, what crosses, and when
predict   stages as tasks: their times from the roofline, or as measured
search    the best placement
options   whole or split, on one device or several, and which is proposed
"""

from parnet_deploy.roofline.costs import (
    ITEM_BYTES,
    PRECISIONS,
    BlockCost,
    Cost,
    Precision,
    block_costs,
    critical_kernels,
    total,
    value_bytes,
)
from parnet_deploy.roofline.cpu import probe_cpu
from parnet_deploy.roofline.devices import (
    HOP_SECONDS,
    LAUNCH_SECONDS,
    Device,
    Link,
    between,
)
from parnet_deploy.roofline.floor import Bound, floor, roofline_seconds
from parnet_deploy.roofline.gpus import GPUS, gpu_kind, known_gpu

__all__ = [
    "GPUS",
    "HOP_SECONDS",
    "ITEM_BYTES",
    "LAUNCH_SECONDS",
    "PRECISIONS",
    "BlockCost",
    "Bound",
    "Cost",
    "Device",
    "Link",
    "Precision",
    "between",
    "block_costs",
    "critical_kernels",
    "floor",
    "gpu_kind",
    "known_gpu",
    "probe_cpu",
    "roofline_seconds",
    "total",
    "value_bytes",
]
