"""What the command line knows of quantising before any of it is loaded: nothing heavy is here."""

from __future__ import annotations

from parnet_deploy.errors import UsageError

LIMIT = 512
"""Calibration images that are taken of more, unless told otherwise: ranges hardly change."""

JSON_FILE, PAGE_FILE = "quantisation.json", "quantisation.html"
"""Of a report, in its folder."""


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
