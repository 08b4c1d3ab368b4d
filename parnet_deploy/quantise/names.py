"""What the command line knows of quantising before any of it is loaded: nothing heavy is here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NoReturn

from parnet_deploy.errors import OutputExistsError, UsageError

LIMIT = 512
"""Calibration images that are taken of more, unless told otherwise: ranges hardly change."""

JSON_FILE, PAGE_FILE = "quantisation.json", "quantisation.html"
"""Of a report, in its folder."""

ALLOW_DOUBTFUL = "--allow-doubtful"
"""The option to go on where images or answers are in doubt, for messages."""

FORMAT = "parnet-deploy/quantisation"
"""What a report's JSON says of itself, by which it is known for ours."""

PAGE_MARK = b'<meta name="generator" content="parnet-deploy">'
"""What every page of ours has in its head."""

_HEAD = 4096
"""Bytes of a page among which its mark is looked for."""


def refuse_report(folder: Path, *, force: bool) -> None:
    """Refuse a report that would replace something unasked, before anything is computed for it.

    Args:
        folder: where it is to be written to; it need not be there.
        force: replace a report of ours that stands there.

    Raises:
        OutputExistsError: one of its files is there and `force` is off, or is not ours.
    """
    for path, ours in ((folder / JSON_FILE, _is_our_json), (folder / PAGE_FILE, _is_our_page)):
        if not os.path.lexists(path):
            continue
        if not force:
            raise OutputExistsError(f"{path} exists already; give --force to replace it")
        if not path.is_file() or not ours(path):  # what is no file may never end
            raise OutputExistsError(
                f"{path} is not a quantisation report of ours, or one of an earlier version that "
                "does not say so, and --force does not replace it; delete it, or choose another "
                "folder for --quantisation-report"
            )


def _is_our_json(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def _is_our_page(path: Path) -> bool:
    try:
        with path.open("rb") as page:
            return PAGE_MARK in page.read(_HEAD)
    except OSError:
        return False


def check_per_tensor(*, per_channel: bool, costs: bool, budget: float | None) -> None:
    """Refuse one scale for a whole kernel where that is measured anyway.

    Args:
        per_channel: a scale for each output channel of a kernel.
        costs: a report was asked for.
        budget: points that may be lost by quantising more; None: no more are kept.

    Raises:
        UsageError: it is asked for beside what measures it.
    """
    if not per_channel and (costs or budget is not None):
        raise UsageError(
            "--quantisation-report and --auto-keep measure --per-tensor anyway; leave it out"
        )


def check_needs_images(
    *, equalise: bool, correct_bias: bool, costs: bool, budget: float | None
) -> None:
    """Refuse what is measured on images where there are none.

    Args:
        equalise: even out channels' ranges first.
        correct_bias: take off what quantising shifts on average.
        costs: a report was asked for.
        budget: points that may be lost by quantising more; None: no more are kept.

    Raises:
        UsageError: one of them is asked for.
    """
    asked = {
        "--auto-keep": budget is not None,
        "--equalise": equalise,
        "--correct-bias": correct_bias,
        "--quantisation-report": costs,
    }
    if wanted := [option for option, is_asked in asked.items() if is_asked]:
        raise UsageError(f"{wanted[0]} needs images to measure on: give --calibrate, too")


def refuse_without_ranges() -> NoReturn:
    """Refuse to quantise where there are neither images nor ranges that were learned.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        "int8 and fp8 need ranges: give --calibrate with images like those it will see, or a "
        "checkpoint that was trained with --qat"
    )
