"""What the layers of a bundle's graphs and engines compute in, for ``inspect``."""

from __future__ import annotations

from collections.abc import Mapping

from parnet_deploy.bundle import Bundle, EngineBundle, ModelBundle, ModelManifest
from parnet_deploy.errors import EngineError, MissingDependencyError, VerificationError


def computes(bundle: ModelBundle | EngineBundle, name: str, file: str) -> Mapping[str, str] | None:
    """The precision of each block's convolution in a graph or engine; None where it does not tell.

    It takes onnx and onnx-graphsurgeon to read graphs, and an engine's own library to read others.

    Args:
        bundle: the bundle.
        name: of the stage, or ``whole``.
        file: the graph's or engine's path inside the bundle.
    """
    try:
        from parnet_deploy.verify.built_engine import stage_types
        from parnet_deploy.verify.written import graph_types
    except ImportError:
        return None
    try:
        if isinstance(bundle.manifest, ModelManifest):
            return graph_types(bundle.path / file)
        engine: EngineBundle = Bundle(
            path=bundle.path, manifest=bundle.manifest, manifest_sha256=bundle.manifest_sha256
        )
        stage = next(one for one in bundle.manifest.stages if one.name == name)
        return stage_types(engine, stage) or None
    except (EngineError, MissingDependencyError, VerificationError):
        return None
