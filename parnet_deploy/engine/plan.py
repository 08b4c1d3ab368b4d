"""Plan: how a network is to be built and placed, in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parnet_deploy.bundle import ModelManifest
from parnet_deploy.errors import SpecError, UsageError, os_reason
from parnet_deploy.spec import ParNetSpec, StemMode, decode


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a network is to be built and placed: what ``plan --output`` writes.

    Attributes:
        spec: the network.
        split: one engine per stage; otherwise one of the whole network, named ``whole``.
        stem: how it is split, None where it is not.
        placement: a device for every stage: ``cpu`` or ``cuda:0`` ...
        precision: that it was made for.
        batch: images per run that it was made for.
        latency: seconds that a run was expected to take.
        assumptions: what was taken as given, in sentences.
    """

    format: Literal["parnet-deploy/plan"] = "parnet-deploy/plan"
    spec: ParNetSpec
    split: bool
    stem: StemMode | None
    placement: Mapping[str, str]
    precision: str
    batch: int
    latency: float
    assumptions: tuple[str, ...] = ()

    def check(self, manifest: ModelManifest) -> None:
        """Refuse a model that the plan is not of. Its placement is checked where it is used.

        Raises:
            UsageError: it is another network, or cut in another way.
        """
        if self.spec != manifest.spec:
            raise UsageError(
                f"the plan is of another network ('{self.spec.name}') than the model "
                f"('{manifest.spec.name}'); make one of this model with 'parnet-deploy plan'"
            )
        if self.split and self.stem != manifest.stem:
            raise UsageError(
                f"the plan has the stem {_WORDS[self.stem]}, and the model was exported with it "
                f"{_WORDS[manifest.stem]}; export it again with --stem {self.stem}"
            )


_WORDS = {"replicate": "replicated", "share": "shared", None: "whole"}


def read_plan(path: Path) -> Plan:
    """Read what ``plan --output`` wrote.

    Raises:
        UsageError: it cannot be read, or is no plan.
    """
    try:
        return decode(path.read_bytes(), Plan)
    except OSError as exc:
        raise UsageError(f"cannot read the plan {path}: {os_reason(exc)}") from exc
    except SpecError as exc:
        raise UsageError(
            f"{path} is no plan ({exc}); 'parnet-deploy plan --output' writes one"
        ) from exc
