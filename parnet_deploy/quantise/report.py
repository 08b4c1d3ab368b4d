"""The report, written: JSON for programs, one page for people."""

from __future__ import annotations

from pathlib import Path

from parnet_deploy.errors import ExportError, os_reason
from parnet_deploy.pages.saving import replace_files
from parnet_deploy.quantise.names import JSON_FILE, PAGE_FILE
from parnet_deploy.quantise.page import render
from parnet_deploy.quantise.result import QuantisationReport
from parnet_deploy.spec import encode


def write_report(report: QuantisationReport, folder: Path) -> tuple[Path, Path]:
    """Write ``quantisation.json`` and ``quantisation.html``; what stood there is replaced.

    Args:
        report: what was found.
        folder: where to; it is made where it is missing.

    Returns:
        Both files.

    Raises:
        ExportError: they cannot be written.
    """
    contents = {folder / JSON_FILE: encode(report), folder / PAGE_FILE: render(report).encode()}
    try:
        replace_files(contents)
    except OSError as exc:
        raise ExportError(
            f"cannot write the report to {folder}: {os_reason(exc)}; choose another folder for "
            "--quantisation-report"
        ) from exc
    return folder / JSON_FILE, folder / PAGE_FILE
