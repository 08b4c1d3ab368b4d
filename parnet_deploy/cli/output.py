"""Files that commands write beside their bundles: all of it or nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from parnet_deploy.errors import BundleError, OutputExistsError, os_reason


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
    with replacing(path, force=force) as work:
        work.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a file beside `path` to write to, and rename it there at the end.

    When the block raises, or the process is interrupted, what was at `path` stays as it was.

    Raises:
        OutputExistsError: something stands there and `force` is off.
        BundleError: it cannot be written.
    """
    refuse_file(path, force=force)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        work = Path(name)
        try:
            yield work
            work.chmod(0o644)
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
    except OSError as exc:
        raise BundleError(f"cannot write {path}: {os_reason(exc)}") from exc


def refuse_file(path: Path, *, force: bool) -> None:
    """Refuse what `replacing` would refuse, before anything is computed for it.

    Raises:
        OutputExistsError: something stands there and `force` is off.
    """
    if os.path.lexists(path) and not force:
        raise OutputExistsError(f"{path} exists already; give --force to replace it")
