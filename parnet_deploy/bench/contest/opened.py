"""A contestant that is open: a runner, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parnet_deploy.runtime.base import Runner


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRunner:
    """What an opener gives.

    Attributes:
        runner: one input (N, 3, H, W), float32 or uint8; one output (N, classes). Close it.
        versions: of the packages that run it, by package.
        precision: what it computes in: ``fp32``, ``tf32``, ``fp16`` ...
        kernels: launches of a run, where known.
    """

    runner: Runner
    versions: Mapping[str, str]
    precision: str = "fp32"
    kernels: int | None = None
