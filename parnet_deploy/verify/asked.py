"""What each block was to compute in, by the manifest's word. Without torch: `inspect` asks, too."""

from __future__ import annotations

from parnet_deploy.spec import ParNetSpec, layout
from parnet_deploy.spec.quantisation import Quantisation, base_of


def asked_types(
    spec: ParNetSpec, precision: str, quantisation: Quantisation | None
) -> dict[str, str]:
    """What each block's convolution, and the head, is to compute in by the manifest's word."""
    base = base_of(precision, quantisation)
    kept = () if quantisation is None else quantisation.kept
    asked = {}
    for block in layout(spec):
        if block.kind == "head":
            asked[block.name] = "fp32" if base == "bf16" else base  # `lowering.half` says why
        else:
            asked[block.name] = base if block.name in kept else precision
    return asked
