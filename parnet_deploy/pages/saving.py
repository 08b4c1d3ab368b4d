"""Files of a report, each written beside its place and renamed into it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files; what stood there is replaced in one step each.

    Args:
        contents: what is to stand in each; folders that are missing are made.

    Raises:
        OSError: one cannot be written. Nothing is left beside it.
    """
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_bytes(content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
