"""Files that commands write beside their bundles: all of it or nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from parnet_deploy.errors import BundleError, OutputExistsError


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write a text file: beside its place first, then renamed into it.

    Args:
        path: where it is to stand; its folder must exist.
        text: what is to stand in it.
        force: replace what stands there.

    Raises:
        OutputExistsError: something stands there and `force` is off.
        BundleError: it cannot be written.
    """
    if os.path.lexists(path) and not force:
        raise OutputExistsError(f"{path} exists already; give --force to replace it")
    try:
        _write_and_rename(path, text)
    except OSError as exc:
        raise BundleError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _write_and_rename(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        work.chmod(0o644)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
