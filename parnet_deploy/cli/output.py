"""Files that commands write beside their bundles: all of it or nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
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


def write_files(contents: Mapping[Path, str], *, force: bool) -> None:
    """Write several text files, each as `write_file`; none where one of them is refused.

    Raises:
        OutputExistsError: something stands in the place of one and `force` is off.
        BundleError: one cannot be written.
    """
    refuse_files(contents, force=force)
    for path, text in contents.items():
        write_file(path, text, force=force)


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


def refuse_files(paths: Iterable[Path], *, force: bool) -> None:
    """Refuse files that could not be written, before anything is computed for them.

    Raises:
        OutputExistsError: something stands in the place of one and `force` is off.
        BundleError: the folder of one is not there, or cannot be written to.
    """
    for path in paths:
        refuse_file(path, force=force)
        if not path.parent.is_dir():
            raise BundleError(f"cannot write {path}: there is no folder {path.parent}")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise BundleError(f"cannot write {path}: no permission to write to {path.parent}")
