"""The options that an engine was built with, from its manifest."""

from __future__ import annotations

from parnet_deploy.bundle import EngineManifest, recorded_fields
from parnet_deploy.engine.base import BuildOptions


def recorded_options(manifest: EngineManifest) -> BuildOptions:
    """The inverse of the builders' `options()`: what builds the same engine again.

    Whether threads spin is None unless somebody chose it, so that a sibling of the other kind
    (whole, split) takes its own kind's default. See `parnet_deploy.bundle.recorded_fields`.
    """
    return BuildOptions(**recorded_fields(manifest))
