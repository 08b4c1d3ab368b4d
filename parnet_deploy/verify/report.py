"""The result, written: JSON for programs, one page for people."""

from __future__ import annotations

import os
from pathlib import Path

from parnet_deploy.errors import VerificationError, os_reason
from parnet_deploy.pages.saving import replace_files
from parnet_deploy.spec import encode
from parnet_deploy.verify.page import render
from parnet_deploy.verify.result import REPORT_FILE, Verification

JSON_FILE = REPORT_FILE
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
        replace_files(contents)
    except OSError as exc:
        raise _unwritable(folder, os_reason(exc)) from exc
    return folder / JSON_FILE, folder / PAGE_FILE


def check_writable(folder: Path) -> None:
    """Notice before the work what would keep `write_report` from writing. Nothing is made.

    Raises:
        VerificationError: the folder, or the one it would be made in, cannot be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        reason = f"{there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"no permission to write to {there}"
    else:
        return
    raise _unwritable(folder, reason)


def _unwritable(folder: Path, reason: str) -> VerificationError:
    return VerificationError(
        f"cannot write the report to {folder}: {reason}; choose another --output"
    )
