"""The result, written: JSON for programs, one page for people."""

from __future__ import annotations

import os
from pathlib import Path

from parnet_deploy.errors import VerificationError, os_reason
from parnet_deploy.spec import encode
from parnet_deploy.verify.page import render
from parnet_deploy.verify.result import Verification

JSON_FILE = "verify.json"
PAGE_FILE = "verify.html"


def write_report(verification: Verification, folder: Path) -> tuple[Path, Path]:
    """Write ``verify.json`` and ``verify.html``; what stood there is replaced in one step each.

    Args:
        verification: what was found.
        folder: where to; it is made where it is missing.

    Returns:
        Both files.

    Raises:
        VerificationError: they cannot be written.
    """
    contents = {
        folder / JSON_FILE: encode(verification),
        folder / PAGE_FILE: render(verification).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            _replace(path, content)
    except OSError as exc:
        raise VerificationError(
            f"cannot write the report to {folder}: {os_reason(exc)}; choose another --output"
        ) from exc
    return folder / JSON_FILE, folder / PAGE_FILE


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
