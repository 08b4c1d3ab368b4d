"""Bundles: a folder of files and a manifest that names every one of them by its sha256.

A model bundle (``models/NAME/``) holds ONNX graphs, an engine bundle (``engines/NAME-TARGET/``)
what a backend made of them. Both are written beside their place and renamed into it, and checked
before use: a bundle under its final name is whole, or it was changed by somebody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Literal, TypeVar

from parnet_deploy.errors import BundleError, OutputExistsError, SpecError
from parnet_deploy.spec import (
    Backend,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    StemMode,
    TensorSpec,
    decode,
    encode,
)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.sha256"

MODEL_GRAPH = "model.onnx"
CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "stages/weights.safetensors"
LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRange:
    """Images per run that a graph or engine takes; all three equal means fixed."""

    min: int = 1
    opt: int = 1
    max: int = 1

    def __post_init__(self) -> None:
        """Refuse what is not a range.

        Raises:
            SpecError: not 1 <= min <= opt <= max.
        """
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(
                f"a batch range is 1 <= MIN <= OPT <= MAX, not {self.min}:{self.opt}:{self.max}"
            )

    @property
    def dynamic(self) -> bool:
        """Whether more than one size is allowed."""
        return self.min != self.max

    @property
    def axis(self) -> int | str:
        """The batch axis in a tensor's shape: a number, or ``"N"``."""
        return "N" if self.dynamic else self.min


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file's digest and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a model bundle's weights came from.

    Attributes:
        kind: ``official`` (authors' release), ``parnet-deploy`` (own checkpoint) or ``untrained``.
        file: name of the file they were read from, or None.
        sha256: digest of that file, or None.
        ema: whether the exponential moving average of the weights was taken.
        seed: seed of untrained weights, or None.
    """

    kind: Literal["official", "parnet-deploy", "untrained"]
    file: str | None = None
    sha256: str | None = None
    ema: bool | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphStage:
    """One stage's graph in a model bundle.

    Attributes:
        name: stage name.
        file: path of its ONNX file inside the bundle.
        blocks: names of the blocks in it.
        inputs: what it reads.
        outputs: what it gives.
    """

    name: str
    file: str
    blocks: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CutContract:
    """A tensor that crosses from one stage to another; `bytes` is its size for one image."""

    tensor: TensorSpec
    bytes: int
    source: str
    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelManifest:
    """What a model bundle is."""

    format: Literal["parnet-deploy/model"] = "parnet-deploy/model"
    format_version: int = FORMAT_VERSION
    name: str
    spec: ParNetSpec
    form: DeployForm
    source: Source
    opset: int
    precision: str = "fp32"
    stem: StemMode
    batch: BatchRange
    softmax: bool
    preprocessing: Preprocessing
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[GraphStage, ...]
    cuts: tuple[CutContract, ...]
    tools: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: _now())
    files: Mapping[str, FileRecord] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStage:
    """One engine in an engine bundle.

    Attributes:
        name: stage name, or ``whole``.
        file: path of the plan or optimised graph inside the bundle.
        device: ``cpu`` or ``cuda:0`` ...
        inputs: what it reads.
        outputs: what it gives.
        kernels: kernels in the plan, where it tells.
        streams: streams those kernels are spread over, where it tells.
    """

    name: str
    file: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kernels: int | None = None
    streams: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """The model bundle that an engine was built from.

    Attributes:
        name: its name.
        manifest_sha256: digest of its manifest, which itself names every file.
        path: where it lay, relative to the engine bundle's folder where that is possible.
    """

    name: str
    manifest_sha256: str
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineManifest:
    """What an engine bundle is.

    Attributes:
        target: what the engine runs on, as the backend wrote it: names and versions that must
            match where it is opened (compute capabilities, provider, versions).
        options: how it was built, with the names of the backend's own flags.
    """

    format: Literal["parnet-deploy/engine"] = "parnet-deploy/engine"
    format_version: int = FORMAT_VERSION
    name: str
    backend: Backend
    split: bool
    model: ModelReference
    spec: ParNetSpec
    form: DeployForm
    precision: str
    batch: BatchRange
    softmax: bool
    preprocessing: Preprocessing
    target: Mapping[str, Any]
    options: Mapping[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[EngineStage, ...]
    tools: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: _now())
    files: Mapping[str, FileRecord] = field(default_factory=dict)


Manifest = TypeVar("Manifest", ModelManifest, EngineManifest)


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
    if _header(path).get("format") == "parnet-deploy/engine":
        return open_engine_bundle(path, check=check)
    return open_model(path, check=check)


@contextlib.contextmanager
def staged(final: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder beside `final` to write into, and rename it into place at the end.

    When the block raises, or the process is interrupted, the folder is removed and what was at
    `final` stays as it was. The files' hashes are taken by `seal`, inside the block.

    Args:
        final: where the bundle is to stand.
        force: replace what stands there, which then goes away only after the new one is whole.

    Raises:
        OutputExistsError: something stands there and `force` is off.
        BundleError: the folder cannot be written (permission, full disk).
    """
    final = Path(os.path.abspath(final))
    if os.path.lexists(final) and not force:
        raise OutputExistsError(f"{final} exists already; give --force to replace it")
    if force and final.exists() and not _replaceable(final):
        raise OutputExistsError(
            f"{final} is not a bundle of parnet-deploy, so --force does not replace it; "
            "move it away or choose another --output"
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.{os.getpid()}.", dir=final.parent))
    except OSError as exc:
        raise BundleError(f"cannot write {final}: {_reason(exc)}") from exc
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        _rename_into_place(work, final, force=force)
    except OSError as exc:
        raise BundleError(f"cannot write {final}: {_reason(exc)}") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)


def seal(work: Path, manifest: Manifest) -> Manifest:
    """Hash every file in a staged folder and write its manifest.

    Returns:
        The manifest with its files filled in.
    """
    files = {}
    mode = 0o666 & ~_umask()  # some writers keep their files private; a server is another user
    for path in sorted(work.rglob("*")):
        if path.is_file():
            path.chmod(mode)
            files[path.relative_to(work).as_posix()] = FileRecord(
                sha256=sha256(path), bytes=path.stat().st_size
            )
    sealed = replace(manifest, files=files)
    data = encode(sealed)
    (work / MANIFEST).write_bytes(data)
    (work / MANIFEST_SUM).write_text(f"{_digest(data)}  {MANIFEST}\n", encoding="ascii")
    return sealed


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_model(reference: ModelReference, engine: Path) -> Path:
    """Where the model bundle of an engine should lie."""
    return Path(os.path.normpath(engine / reference.path))


def find_bundles(folder: Path) -> list[Path]:
    """Folders right below `folder` that hold a manifest, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(
        p for p in folder.iterdir() if (p / MANIFEST).is_file() and not p.name.startswith(".")
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _header(path: Path) -> dict[str, Any]:
    """The manifest as plain JSON, before its format is known to be ours."""
    if not path.exists():
        raise BundleError(f"there is no bundle at {path}")
    try:
        header = decode((path / MANIFEST).read_bytes(), dict)
    except FileNotFoundError as exc:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from exc
    except NotADirectoryError as exc:
        raise BundleError(f"{path} is a file; a bundle is a folder with a {MANIFEST}") from exc
    except SpecError as exc:
        raise BundleError(f"{path / MANIFEST} is damaged: {exc}; make the bundle again") from exc
    except OSError as exc:
        raise BundleError(f"cannot read {path / MANIFEST}: {_reason(exc)}") from exc
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
        raise BundleError(f"{path} is a '{found}' bundle, and a '{wanted}' bundle is needed")
    data = (path / MANIFEST).read_bytes()
    digest = _digest(data)
    if check:
        _check_manifest_sum(path, digest)
    try:
        manifest = decode(data, kind)
    except SpecError as exc:
        raise BundleError(f"{path / MANIFEST} is damaged: {exc}; make the bundle again") from exc
    _check_names(path, manifest.files)
    if check:
        for name, record in manifest.files.items():
            _check_file(path, name, record)
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


def _check_file(path: Path, name: str, record: FileRecord) -> None:
    file = path / name
    try:
        size = file.stat().st_size
        digest = sha256(file) if size == record.bytes else ""
    except FileNotFoundError as exc:
        raise BundleError(f"{path} is incomplete: '{name}' is missing") from exc
    except OSError as exc:
        raise BundleError(f"cannot read {file}: {_reason(exc)}") from exc
    if size != record.bytes:
        raise BundleError(
            f"{file} is damaged: it has {size} bytes, and {record.bytes} are expected; "
            "make the bundle again"
        )
    if digest != record.sha256:
        raise BundleError(
            f"{file} is damaged: its sha256 is {digest[:12]}..., and {record.sha256[:12]}... is "
            "expected; make the bundle again"
        )


def _replaceable(final: Path) -> bool:
    return final.is_dir() and ((final / MANIFEST).is_file() or not any(final.iterdir()))


def _remove_stale(final: Path) -> None:
    """Remove what a killed process left beside `final`."""
    for left in final.parent.glob(f".{final.name}.*.*"):
        pid = left.name.removeprefix(f".{final.name}.").split(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _rename_into_place(work: Path, final: Path, *, force: bool) -> None:
    for path in (*work.rglob("*"), work):
        _sync(path)
    if not os.path.lexists(final):
        work.rename(final)
    elif force:
        _exchange(work, final)
    else:
        raise OutputExistsError(f"{final} was made by somebody else meanwhile; nothing was changed")
    _sync(final.parent)


def _exchange(work: Path, final: Path) -> None:
    """Swap two folders in one step, so that `final` is never absent; `work` is then the old one.

    Linux has renameat2(2) for that. Elsewhere the old folder is moved aside first.
    """
    at_fdcwd, rename_exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        names = os.fsencode(work), os.fsencode(final)
        if renameat2(at_fdcwd, names[0], at_fdcwd, names[1], rename_exchange) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(code, os.strerror(code))
    aside = work.with_name(f"{work.name}.old")
    final.rename(aside)
    try:
        work.rename(final)
    except OSError:
        aside.rename(final)
        raise
    aside.rename(work)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)
