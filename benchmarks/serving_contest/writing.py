"""The result of a contest as JSON and Markdown."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contest import cpu_model

from parnet_deploy.runtime.cpu import usable_cores
from serving_contest.network import THREADS
from serving_contest.report import rows_of, table, verdicts
from serving_contest.rounds import Contest, Plan

_EXPLAINED = (
    "Milliseconds as the client sees them, from the first byte sent to the last one received; "
    "medians over rounds of each round's percentile. 'added' is what is left when the engine's own "
    "median, measured alone in the same round, is taken off. With 4 clients that is mostly waiting "
    "for the others' runs, since every server has one instance of the engine. 'processor' is what "
    "all threads and processes of a server compute for one request, the engine's run included. The "
    "last columns are what is added divided by what Triton adds in the same round: median "
    "(quartiles)."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What has to be known of a result.

    Attributes:
        network: its name.
        cores: how many all shared; 0: all of the machine's.
        awake: whether no core was let go idle.
        size: height and width of its images.
        plan: how much was measured.
        command: what makes it again.
        versions: by server and package.
    """

    network: str
    cores: int
    awake: bool
    size: tuple[int, int]
    plan: Plan
    command: str
    versions: Mapping[str, Mapping[str, str]]


def way(cores: int, awake: bool) -> str:
    """What the names of files say of how it was measured."""
    return f"-{cores}-core" * bool(cores) + "-awake" * awake


def write(contest: Contest, facts: Facts, folder: Path) -> str:
    """Write a contest's result into a folder.

    Returns:
        The Markdown.
    """
    today = datetime.date.today().isoformat()
    cores = f"{usable_cores()} core{'s' if usable_cores() > 1 else ''}"
    awake = " kept awake" * facts.awake
    hardware = f"{cpu_model()}, {cores}{awake}; Python {platform.python_version()}"
    text = "\n".join(_markdown(contest, facts, f"{today}; {hardware}")) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{today}-serving-{facts.network}{way(facts.cores, facts.awake)}"
    stem.with_name(f"{stem.name}.md").write_text(text)
    data = {"date": today, "hardware": hardware, **asdict(facts), **_figures(contest)}
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(data) + "\n")
    return text


def _markdown(contest: Contest, facts: Facts, when_and_where: str) -> list[str]:
    plan, (height, width) = facts.plan, facts.size
    measured = f"{plan.rounds} rounds, {plan.requests} requests a turn"
    engine = f"network '{facts.network}', batch 1 of {height}x{width}, ONNX Runtime on the CPU"
    parts = {
        who: ", ".join(f"{package} {number}" for package, number in found.items())
        for who, found in facts.versions.items()
    }
    lines = [
        "# What servers add to their engine",
        "",
        f"{when_and_where}; {measured}; {engine}, {THREADS} thread.",
        "",
        f"    {facts.command}",
        "",
        *(f"- {who}: {said}" for who, said in parts.items()),
        "",
        _EXPLAINED,
        "",
        *(f"- {verdict.sentence}." for verdict in verdicts(contest.rounds)),
        *(f"- Out: {who}: {why}." for who, why in contest.out.items()),
    ]
    for group in sorted(contest.rounds[0]):
        lines += ["", f"## {group}", "", *table(rows_of(contest.rounds, group))]
    return lines


def _figures(contest: Contest) -> dict[str, Any]:
    judged = [asdict(verdict) | {"holds": verdict.holds} for verdict in verdicts(contest.rounds)]
    rows = {g: [asdict(row) for row in rows_of(contest.rounds, g)] for g in contest.rounds[0]}
    return {"verdicts": judged, "rows": rows, "out": contest.out, "rounds": contest.rounds}
