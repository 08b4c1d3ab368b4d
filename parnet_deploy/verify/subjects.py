"""The bundles that are verified: the model, and up to one engine of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.bundle import (
    BatchRange,
    Bundle,
    EngineBundle,
    EngineManifest,
    ModelBundle,
    ModelManifest,
    find_bundles,
    open_bundle,
    open_engine_bundle,
    open_model,
    resolve_model,
)
from parnet_deploy.errors import BundleError, UsageError, VerificationError
from parnet_deploy.runtime import rebuild_command
from parnet_deploy.spec import Backend
from parnet_deploy.verify.tolerances import ENGINE_RUNGS, RungName

_TAKEN_OVER = (
    "spec",
    "form",
    "precision",
    "quantisation",
    "batch",
    "softmax",
    "preprocessing",
    "inputs",
    "outputs",
)
"""Fields of an engine's manifest that are its model's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subjects:
    """What is verified.

    Attributes:
        given: folder that was named.
        model: the model bundle.
        engines: engine bundles by the rung they are.
        absent: why the other engine rungs have none.
        foreign: engines that are not of this model bundle, and how that shows.
    """

    given: Path
    model: ModelBundle
    engines: Mapping[RungName, EngineBundle]
    absent: Mapping[RungName, str]
    foreign: Mapping[RungName, str]

    @property
    def batch(self) -> BatchRange:
        """Images per run that the graphs take, and so what is built from them."""
        return self.model.manifest.batch


def find_subjects(path: Path, *, model: Path | None, sibling: Path | None) -> Subjects:
    """Open what is to be verified, every file checked.

    Args:
        path: an engine bundle or a model bundle.
        model: where the model bundle lies, or None for where the engine says.
        sibling: an engine of the other kind, whole or split, or None.

    Raises:
        BundleError: a bundle is missing or damaged.
        VerificationError: an engine's model bundle is not where it should be.
        UsageError: two engines of the same kind, or a model bundle where an engine is meant.
    """
    bundle = open_bundle(path)
    engines: dict[RungName, EngineBundle] = {}
    if isinstance(bundle.manifest, EngineManifest):
        engines[rung_of(bundle.manifest)] = Bundle(
            path=path, manifest=bundle.manifest, manifest_sha256=bundle.manifest_sha256
        )
    elif model is not None:
        raise UsageError(f"{path} is a model bundle itself; --model is for an engine's")
    if sibling is not None:
        other = open_engine_bundle(sibling)
        rung = rung_of(other.manifest)
        if rung in engines:
            kind = "split" if other.manifest.split else "whole"
            raise UsageError(f"{path} and {sibling} are both {kind} engines; verify each by itself")
        engines[rung] = other
    found = _open_model(path, bundle.manifest, model)
    foreign = {
        rung: f"{how}; build it again: {rebuild_command(engine)}"
        for rung, engine in engines.items()
        if (how := _foreign(engine, found))
    }
    absent = {rung: _absent(rung, path, found) for rung in ENGINE_RUNGS if rung not in engines}
    return Subjects(given=path, model=found, engines=engines, absent=absent, foreign=foreign)


def rung_of(manifest: EngineManifest) -> RungName:
    """The rung that an engine is."""
    return "split-engine" if manifest.split else "engine"


def _open_model(
    path: Path, manifest: ModelManifest | EngineManifest, given: Path | None
) -> ModelBundle:
    if isinstance(manifest, ModelManifest):
        return open_model(path, check=False)  # every file was checked a moment ago
    place = given or resolve_model(manifest.model, path)
    try:
        return open_model(place)
    except BundleError as exc:
        if place.exists():
            raise
        raise VerificationError(
            f"{path} was built from the model bundle '{manifest.model.name}', which is not at "
            f"{place}; say where it is with --model"
        ) from exc


def _foreign(engine: EngineBundle, model: ModelBundle) -> str | None:
    """How it shows that an engine is not of this model, or None."""
    named = engine.manifest.model
    if named.manifest_sha256 != model.manifest_sha256:
        return (
            f"it was built from another bundle: from '{named.name}' with manifest "
            f"{named.manifest_sha256[:12]}..., and {model.path} has "
            f"{model.manifest_sha256[:12]}..."
        )
    # What the ladder feeds and compares is the model's; whoever predicts goes by the engine's own.
    differing = [
        field
        for field in _TAKEN_OVER
        if getattr(engine.manifest, field) != getattr(model.manifest, field)
    ]
    differing += ["labels"] * (engine.labels != model.labels)
    return f"it says otherwise than its model: {', '.join(differing)}" if differing else None


def _absent(rung: RungName, path: Path, model: ModelBundle) -> str:
    """Why an engine rung has no engine, and which could be named."""
    kind = "split" if rung == "split-engine" else "whole"
    reason = f"no {kind} engine was given"
    places = dict.fromkeys((path.parent, model.path.parent.parent / "engines"))
    found: dict[Backend, Path] = {}
    for place in (candidate for folder in places for candidate in find_bundles(folder)):
        manifest = _engine_manifest(place)
        same = manifest is not None and manifest.model.manifest_sha256 == model.manifest_sha256
        if manifest is not None and same and rung_of(manifest) == rung:
            found.setdefault(manifest.backend, place)
    own = _engine_manifest(path)
    best = found.get(own.backend) if own else None  # what it is compared with differs in one thing
    named = best or next(iter(found.values()), None)
    return reason if named is None else f"{reason}; there is one: --with {named}"


def _engine_manifest(path: Path) -> EngineManifest | None:
    """What an engine says of itself; None for a model bundle, and one that is damaged."""
    try:
        return open_engine_bundle(path, check=False).manifest
    except BundleError:
        return None
