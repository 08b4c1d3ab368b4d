"""Bundles: a folder of files and a manifest that names every one of them by its sha256.

A model bundle (``models/NAME/``) holds ONNX graphs, an engine bundle (``engines/NAME-TARGET/``)
what a backend made of them. Both are written beside their place and renamed into it, and checked
before use: a bundle under its final name is whole, or it was changed by somebody else.

manifest  what a manifest says, as values
opening   opening a bundle, every file checked
recorded  how an engine was built
writing   writing a bundle, all of it or nothing
digest    sha256
tools     versions of what took part
"""

from parnet_deploy.bundle.digest import sha256
from parnet_deploy.bundle.manifest import (
    CHECKPOINT,
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    MANIFEST_SUM,
    MODEL_GRAPH,
    WEIGHTS,
    BatchRange,
    CutContract,
    EngineManifest,
    EngineStage,
    FileRecord,
    GraphStage,
    ModelManifest,
    ModelReference,
    Source,
)
from parnet_deploy.bundle.opening import (
    Bundle,
    EngineBundle,
    ModelBundle,
    build_command,
    find_bundles,
    is_engine,
    open_bundle,
    open_engine_bundle,
    open_model,
    resolve_model,
)
from parnet_deploy.bundle.recorded import SPIN_CHOSEN, recorded_fields
from parnet_deploy.bundle.tools import versions
from parnet_deploy.bundle.writing import refuse_existing, seal, staged

__all__ = [
    "CHECKPOINT",
    "FORMAT_VERSION",
    "LABELS",
    "MANIFEST",
    "MANIFEST_SUM",
    "MODEL_GRAPH",
    "SPIN_CHOSEN",
    "WEIGHTS",
    "BatchRange",
    "Bundle",
    "CutContract",
    "EngineBundle",
    "EngineManifest",
    "EngineStage",
    "FileRecord",
    "GraphStage",
    "ModelBundle",
    "ModelManifest",
    "ModelReference",
    "Source",
    "build_command",
    "find_bundles",
    "is_engine",
    "open_bundle",
    "open_engine_bundle",
    "open_model",
    "recorded_fields",
    "refuse_existing",
    "resolve_model",
    "seal",
    "sha256",
    "staged",
    "versions",
]
