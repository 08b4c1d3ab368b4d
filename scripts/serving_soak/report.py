"""The result in words."""

from __future__ import annotations

import datetime
import platform
from importlib.metadata import version

import numpy as np

from parnet_deploy.runtime.cpu import read_cpu
from serving_soak.judging import MEMORY
from serving_soak.running import Outcome, Plan

_PACKAGES = ("parnet-deploy", "starlette", "uvicorn", "uvloop", "httptools", "numpy")

_SHOWN = 25
"""Reasons; each client keeps as many."""


def markdown(plan: Plan, outcome: Outcome, command: str) -> str:
    """A page with every figure."""
    tally, growth, counts = outcome.tally, outcome.growth, outcome.counts
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    p50, p99 = np.percentile(tally.milliseconds or [0.0], (50, 99))
    asked = sum(tally.asked.values())
    cpu = read_cpu()
    today = datetime.date.today().isoformat()
    where = f"{cpu.name}, {cpu.cores} cores; Python {platform.python_version()}"
    pace = f"{asked} requests from {plan.clients} clients in {outcome.seconds:.0f} s"
    rate = f"{asked / outcome.seconds:.0f} a second"
    stages = (counts.before, growth.first, growth.last, counts.after)
    memory = " | ".join(f"{stage.memory / 2**20:.1f}" for stage in stages)
    lines = [
        "# Soak of parnet-deploy serve",
        "",
        f"{today}; {where}; {versions}.",
        "",
        f"    {command}",
        "",
        f"{pace} ({rate}; answers after {p50:.1f} ms (p50), {p99:.1f} ms (p99)):",
        f"{tally.lost} lost, {tally.wrong} wrong.",
        "",
        "| requests | sent | right |",
        "|---|---|---|",
        *(
            f"| {kind} | {sent} | {tally.right[kind]} |"
            for kind, sent in sorted(tally.asked.items())
        ),
        "",
        "| of the server | before | first window | last window | clients gone |",
        "|---|---|---|---|---|",
        f"| memory, MiB | {memory} |",
        f"| open files | {' | '.join(str(stage.files) for stage in stages)} |",
        f"| threads | {' | '.join(str(stage.threads) for stage in stages)} |",
        "",
        "The windows are the requests from 20 to 40 and from 80 to 100 per cent, and the figures",
        f"medians in them; memory may grow by {MEMORY >> 20} MiB.",
        "",
        f"The server counts {counts.answered} answers of its model and {counts.in_flight} requests",
        f"in flight when all clients have gone; it ended with status {counts.status} on SIGTERM.",
        "",
        *(f"- FAILED: {fault}." for fault in outcome.faults),
        *(f"  - {reason}" for reason in tally.reasons[:_SHOWN]),
    ]
    if not outcome.faults:
        lines.append("Every request got one answer, its own and the right one, and nothing grew.")
    return "\n".join(lines) + "\n"
