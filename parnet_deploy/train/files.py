"""Files of a run that are written again and again: whole at every moment, whatever happens."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from parnet_deploy.errors import TrainingError, os_reason


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file beside `path` to write into, and rename it there at the end.

    When the block raises, or the process is killed, what was at `path` stays as it was. The block
    may also put another file in its place, by its name, as some writers of a format do.

    Raises:
        TrainingError: it cannot be written (permission, full disk).
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield file
        beside.chmod(mode)  # safetensors keeps its files private
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as exc:
        raise TrainingError(f"cannot write {path}: {os_reason(exc)}") from exc
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others from training into a folder: it is locked until the block or the process ends.

    Raises:
        TrainingError: another process holds it, or it cannot be opened.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise TrainingError(f"cannot open {folder}: {os_reason(exc)}") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(handle)
        raise TrainingError(
            f"another process is training into {folder}; wait for it, or take another --output"
        ) from exc
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process has left beside the files it was about to replace."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)
