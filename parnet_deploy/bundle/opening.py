"""Opening bundles: every file is compared with the manifest before it is used."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic

from parnet_deploy.bundle.digest import sha256, sha256_bytes
from parnet_deploy.bundle.manifest import (
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    MANIFEST_SUM,
    EngineManifest,
    FileRecord,
    Manifest,
    ModelManifest,
    ModelReference,
)
from parnet_deploy.bundle.recorded import recorded_fields
from parnet_deploy.errors import BundleError, SpecError, os_reason
from parnet_deploy.spec import Backend, decode


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle(Generic[Manifest]):
    """An opened bundle: its folder and its manifest."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def file(self, name: str) -> Path:
        """Path of a file that the manifest names.

        Raises:
            BundleError: the manifest does not name it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no file '{name}' in its manifest")
        return self.path / name

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return tuple(self.file(LABELS).read_text(encoding="utf-8").splitlines())


ModelBundle = Bundle[ModelManifest]
EngineBundle = Bundle[EngineManifest]


def open_model(path: Path, *, check: bool = True) -> ModelBundle:
    """Open a model bundle. See `open_bundle`."""
    return _open(path, ModelManifest, check=check)


def open_engine_bundle(path: Path, *, check: bool = True) -> EngineBundle:
    """Open an engine bundle. See `open_bundle`."""
    return _open(path, EngineManifest, check=check)


def open_bundle(path: Path, *, check: bool = True) -> ModelBundle | EngineBundle:
    """Open a bundle of either kind.

    Args:
        path: its folder.
        check: compare every file with the manifest's sha256 first.

    Raises:
        BundleError: it is missing, damaged, incomplete or of a newer format.
    """
    if is_engine(path):
        return open_engine_bundle(path, check=check)
    return open_model(path, check=check)


def is_engine(path: Path) -> bool:
    """Whether a bundle is an engine; no other file of it than its manifest is looked at.

    Raises:
        BundleError: it is missing, damaged or of a newer format.
    """
    return _header(path).get("format") == "parnet-deploy/engine"


def resolve_model(reference: ModelReference, engine: Path) -> Path:
    """Where the model bundle of an engine should lie."""
    return Path(os.path.normpath(engine.resolve() / reference.path))


def build_command(
    path: Path,
    manifest: EngineManifest,
    *,
    other: Backend | None = None,
    capability: str | None = None,
) -> str:
    """The command that builds an engine from its model.

    Args:
        path: the engine's folder.
        manifest: what it is.
        other: another backend, whose engine is built beside it; None: its own, in its place.
        capability: compute capability of the GPU that a TensorRT RTX plan in fp8 is to be for; None
            for those that it was built for. In other precisions one plan runs on many.
    """
    words = ["parnet-deploy", "build-engine", str(resolve_model(manifest.model, path))]
    words += ["--split-streams"] * manifest.split
    if other is not None:
        return shlex.join([*words, "--backend", other])
    words += ["--backend", manifest.backend, *_build_flags(manifest, capability)]
    words += ["--output", str(path), "--force"]
    return shlex.join(words)


def _build_flags(manifest: EngineManifest, capability: str | None) -> list[str]:
    """What was chosen of how an engine computes; for which GPUs is left to where it is built.

    But in fp8, which TensorRT RTX does not build for all that it builds for by itself.
    """
    flags: list[str] = []
    if manifest.precision == "fp8" and manifest.backend == "tensorrt-rtx":
        named = recorded_fields(manifest).get("compute_capabilities", ())
        if gpus := capability or ",".join(named):
            flags += ["--compute-capability", gpus]
    for field, value in recorded_fields(manifest).items():
        if field in _OF_A_PLACE:
            continue
        name = f"--{_OPTIONS.get(field, field.replace('_', '-'))}"
        if isinstance(value, bool):
            flags.append(name if value else name.replace("--", "--no-", 1))
        else:
            flags += [name, str(value)]
    return flags


_OF_A_PLACE = ("devices", "compute_capabilities")

_OPTIONS = {"workspace_mib": "workspace"}
"""Options of ``build-engine`` that are not called like the field."""


def find_bundles(folder: Path) -> list[Path]:
    """Folders right below `folder` that hold a manifest, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(
        p for p in folder.iterdir() if (p / MANIFEST).is_file() and not p.name.startswith(".")
    )


def _header(path: Path) -> dict[str, Any]:
    """The manifest as plain JSON, before its format is known to be ours."""
    if not path.exists():
        raise BundleError(
            f"there is no bundle at {path}; 'parnet-deploy export' makes models under models/, "
            "'parnet-deploy build-engine' makes engines of them under engines/"
        )
    try:
        header = decode((path / MANIFEST).read_bytes(), dict)
    except FileNotFoundError as exc:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from exc
    except NotADirectoryError as exc:
        raise BundleError(f"{path} is a file; a bundle is a folder with a {MANIFEST}") from exc
    except SpecError as exc:
        raise BundleError(f"{path / MANIFEST} is damaged: {exc}; make the bundle again") from exc
    except OSError as exc:
        raise BundleError(f"cannot read {path / MANIFEST}: {os_reason(exc)}") from exc
    version = header.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has manifest format {version}, and this version of parnet-deploy reads up to "
            f"{FORMAT_VERSION}; install a newer parnet-deploy or make the bundle again"
        )
    return header


def _open(path: Path, kind: type[Manifest], *, check: bool) -> Bundle[Manifest]:
    header = _header(path)
    found = str(header.get("format"))
    wanted = "parnet-deploy/model" if kind is ModelManifest else "parnet-deploy/engine"
    if found != wanted:
        makes = "export" if kind is ModelManifest else "build-engine"
        raise BundleError(
            f"{path} is a '{found}' bundle, and a '{wanted}' bundle is needed; "
            f"'parnet-deploy {makes}' makes one"
        )
    data = (path / MANIFEST).read_bytes()
    digest = sha256_bytes(data)
    if check:
        _check_manifest_sum(path, digest)
    try:
        manifest = decode(data, kind)
    except SpecError as exc:
        raise BundleError(f"{path / MANIFEST} is damaged: {exc}; make the bundle again") from exc
    _check_names(path, manifest.files)
    if check:
        for name, record in manifest.files.items():
            _check_file(path, name, record, _again(path, manifest))
    return Bundle(path=path, manifest=manifest, manifest_sha256=digest)


def _check_manifest_sum(path: Path, digest: str) -> None:
    try:
        expected = (path / MANIFEST_SUM).read_text(encoding="ascii").split()[0]
    except (OSError, UnicodeDecodeError, IndexError) as exc:
        raise BundleError(
            f"{path} is incomplete: {MANIFEST_SUM} is missing or unreadable; make the bundle again"
        ) from exc
    if expected != digest:
        raise BundleError(
            f"{path / MANIFEST} was changed after it was written (its sha256 is {digest[:12]}..., "
            f"and {expected[:12]}... is expected); make the bundle again"
        )


def _check_names(path: Path, names: Mapping[str, FileRecord]) -> None:
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise BundleError(f"{path} names a file outside itself: '{name}'")


def _again(path: Path, manifest: ModelManifest | EngineManifest) -> str:
    """What to do about damage."""
    if isinstance(manifest, ModelManifest):
        return "make the bundle again with 'parnet-deploy export'"
    return f"build it again: {build_command(path, manifest)}"


def _check_file(path: Path, name: str, record: FileRecord, again: str) -> None:
    file = path / name
    try:
        size = file.stat().st_size
        digest = sha256(file) if size == record.bytes else ""
    except FileNotFoundError as exc:
        raise BundleError(f"{path} is incomplete: '{name}' is missing; {again}") from exc
    except OSError as exc:
        raise BundleError(f"cannot read {file}: {os_reason(exc)}") from exc
    if size != record.bytes:
        raise BundleError(
            f"{file} is damaged: it has {size} bytes, and {record.bytes} are expected; {again}"
        )
    if digest != record.sha256:
        raise BundleError(
            f"{file} is damaged: its sha256 is {digest[:12]}..., and {record.sha256[:12]}... is "
            f"expected; {again}"
        )
