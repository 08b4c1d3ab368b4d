"""What the benchmarks share: contestants interleaved, each in fresh processes, and their table."""

from __future__ import annotations

import datetime
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from parnet_deploy.runtime.cpu import read_cpu

RESULTS = Path(__file__).parent / "results"

Round = dict[str, list[float]]
"""Milliseconds by contestant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A contestant's result: milliseconds, and ratios to the reference."""

    name: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A contest's result, with what it takes to make it again.

    Attributes:
        stem: name of the files, after the date.
        title: what was measured, with versions.
        hardware: on what.
        conditions: batch, precision, rounds.
        command: what makes it again.
        rate: what the images are counted by.
    """

    stem: str
    title: str
    hardware: str
    conditions: str
    command: str
    rate: str = "images/s"


def interleave(commands: Mapping[str, Sequence[str]], rounds: int) -> list[Round]:
    """Run every contestant once a round, in shuffled order, each in a fresh process.

    Args:
        commands: by contestant: what prints a JSON list of milliseconds.
        rounds: how many.
    """
    rng = random.Random(0)
    # As parnet-deploy's commands set it: threads that wait do not take the cores from others.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    results = []
    for index in range(rounds):
        found = {}
        for name in rng.sample(list(commands), len(commands)):
            done = subprocess.run(
                commands[name], stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
            found[name] = json.loads(done.stdout)
        results.append(found)
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
    return results


def summarise(rounds: Sequence[Round], reference: str) -> list[Row]:
    """Medians, and the median and quartiles of the ratio to the reference of the same round."""
    rows = []
    for name in rounds[0]:
        medians = [statistics.median(results[name]) for results in rounds]
        ratios = [
            statistics.median(results[name]) / statistics.median(results[reference])
            for results in rounds
        ]
        low, middle, high = (float(np.percentile(ratios, q)) for q in (25, 50, 75))
        rows.append(
            Row(
                name=name,
                median_ms=statistics.median(medians),
                ratio=middle,
                ratio_low=low,
                ratio_high=high,
            )
        )
    return sorted(rows, key=lambda row: row.ratio)


def cpu_model() -> str:
    """The processor's name, which many share, and which vector instructions it has."""
    cpu = read_cpu()
    return f"{cpu.name} ({', '.join(cpu.features)})"


def write(report: Report, rows: Sequence[Row], rounds: Sequence[Round], images: int) -> None:
    """Write JSON with every figure, and a table.

    Args:
        report: what is said about them.
        rows: the figures.
        rounds: what they come from.
        images: how many images one run takes.
    """
    today = datetime.date.today().isoformat()
    lines = [
        f"# {report.title}",
        "",
        f"{today}; {report.hardware}; {report.conditions}.",
        "",
        f"    {report.command}",
        "",
        f"| contestant | median, ms | {report.rate} | time, ratio | quartiles of the ratio |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.median_ms:.1f} | {1000 * images / row.median_ms:.1f} "
            f"| {row.ratio:.3f} | {row.ratio_low:.3f} to {row.ratio_high:.3f} |"
            for row in rows
        ),
    ]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{today}-{report.stem}"
    stem.with_name(f"{stem.name}.md").write_text("\n".join(lines) + "\n")
    data = {
        "date": today,
        **asdict(report),
        "rows": [asdict(row) for row in rows],
        "milliseconds": list(rounds),
    }
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(data) + "\n")
    print("\n".join(lines))
