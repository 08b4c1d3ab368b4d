"""Room on the disk for what a benchmark builds: looked for before hours of building."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from parnet_deploy.bench.entries.timm_networks import TIMM_NETWORKS
from parnet_deploy.bench.report.paper import TABLE_2
from parnet_deploy.bundle import open_bundle
from parnet_deploy.cli.bench_asked import Asked
from parnet_deploy.cli.console import human_bytes
from parnet_deploy.errors import UsageError
from parnet_deploy.spec import count, variant

WEIGHT = 4
"""Bytes of a weight. What is in float16 takes less."""

MODEL = 2.2
"""A model bundle over its fused weights: graphs and checkpoint. Measured on S: 2.12."""

ENGINE = 1.1
"""An engine over its weights. Measured on S with ONNX Runtime: 1.03 whole, 1.04 split."""

PEER = 2.0
"""A network of others over its weights: its graph, and what that is converted to."""


def check_space(asked: Asked, paths: Sequence[Path], folder: Path) -> None:
    """Refuse what would fill the disk.

    Args:
        asked: what is to be measured.
        paths: bundles that were named.
        folder: the empty one in which everything is built and stays until the end.

    Raises:
        UsageError: there is less room than it takes.
    """
    needed, free = space_needed(asked, paths), shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"this builds about {human_bytes(needed)} of models and engines, and {folder.parent} "
            f"has {human_bytes(free)} left; set TMPDIR to a folder on a larger disk, or measure "
            "fewer networks at a time with --variants"
        )


def space_needed(asked: Asked, paths: Sequence[Path]) -> int:
    """About how many bytes are built."""
    builds = max(1, len(asked.backends))
    engines = 2 if asked.schedules else 1  # the other schedule; GPUs have more, on larger disks
    variants = [WEIGHT * count(variant(name).spec).parameters_fused for name in asked.networks]
    models = sum(variants) * builds * len(asked.precisions) * (MODEL + engines * ENGINE)
    subjects = sum(_size(path) for path in paths) * engines * ENGINE
    others = sum(_millions(name) for name in TIMM_NETWORKS) * 1e6 * WEIGHT * builds * PEER
    peers = (sum(variants) + subjects) * len(asked.against) * PEER
    return round(models + subjects + peers + (others if asked.paper else 0))


def _size(path: Path) -> int:
    """Bytes of a bundle's files, by its manifest."""
    return sum(record.bytes for record in open_bundle(path, check=False).manifest.files.values())


def _millions(network: str) -> float:
    """Millions of parameters of one of the paper's other networks."""
    (printed,) = (line.parameters for line in TABLE_2 if line.network == network)
    return float(printed)
