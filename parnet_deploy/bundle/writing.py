"""Writing bundles: beside their place, sealed with a manifest, renamed into it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parnet_deploy.bundle.digest import sha256, sha256_bytes
from parnet_deploy.bundle.manifest import MANIFEST, MANIFEST_SUM, FileRecord, Manifest
from parnet_deploy.errors import BundleError, OutputExistsError, os_reason
from parnet_deploy.spec import encode


@contextlib.contextmanager
def staged(final: Path, *, force: bool = False, marker: str = MANIFEST) -> Iterator[Path]:
    """Give a folder beside `final` to write into, and rename it into place at the end.

    When the block raises, or the process is interrupted, the folder is removed and what was at
    `final` stays as it was. The files' hashes are taken by `seal`, inside the block.

    Args:
        final: where the bundle is to stand.
        force: replace what stands there, which then goes away only after the new one is whole.
        marker: a file that every folder of this kind has; without it nothing is replaced.

    Raises:
        OutputExistsError: something stands there and `force` is off, or it is of another kind.
        BundleError: the folder cannot be written (permission, full disk).
    """
    final = Path(os.path.abspath(final))
    refuse_existing(final, force=force, marker=marker)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.{os.getpid()}.", dir=final.parent))
    except (FileExistsError, NotADirectoryError) as exc:
        raise BundleError(f"cannot write {final}: {final.parent} is not a folder") from exc
    except OSError as exc:
        raise BundleError(f"cannot write {final}: {os_reason(exc)}") from exc
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        _make_readable(work)
        _rename_into_place(work, final, force=force)
    except OSError as exc:
        raise BundleError(f"cannot write {final}: {os_reason(exc)}") from exc
    finally:
        _discard(work)


def refuse_existing(final: Path, *, force: bool = False, marker: str = MANIFEST) -> None:
    """Refuse what `staged` would refuse, before anything is computed for it.

    Raises:
        OutputExistsError: something stands there and `force` is off, or it is of another kind.
    """
    final = Path(os.path.abspath(final))
    if os.path.lexists(final) and not force:
        raise OutputExistsError(f"{final} exists already; give --force to replace it")
    if force and final.exists() and not _replaceable(final, marker):
        raise OutputExistsError(
            f"{final} is not ours (it has no {marker}), so --force does not replace it; "
            "move it away or choose another --output"
        )


def seal(work: Path, manifest: Manifest) -> Manifest:
    """Hash every file in a staged folder and write its manifest.

    Returns:
        The manifest with its files filled in.
    """
    files = {}
    for path in sorted(work.rglob("*")):
        if path.is_file():
            files[path.relative_to(work).as_posix()] = FileRecord(
                sha256=sha256(path), bytes=path.stat().st_size
            )
    sealed = replace(manifest, files=files)
    data = encode(sealed)
    (work / MANIFEST).write_bytes(data)
    (work / MANIFEST_SUM).write_text(f"{sha256_bytes(data)}  {MANIFEST}\n", encoding="ascii")
    return sealed


def _replaceable(final: Path, marker: str) -> bool:
    return final.is_dir() and ((final / marker).is_file() or not any(final.iterdir()))


def _make_readable(work: Path) -> None:
    """Some writers keep their files private; who reads them may be another user."""
    mode = 0o666 & ~_umask()
    for path in work.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _remove_stale(final: Path) -> None:
    """Remove what a killed process left beside `final`."""
    ours = re.compile(rf"\.{re.escape(final.name)}\.(\d+)\.[a-z0-9_]{{8}}(\.old)?")
    for left in final.parent.iterdir():
        if (match := ours.fullmatch(left.name)) and not _alive(int(match[1])):
            _discard(left)


def _discard(path: Path) -> None:
    if path.is_symlink():  # a link to a bundle was replaced; what it points to is not ours
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


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
