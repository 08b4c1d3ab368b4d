"""What was measured, as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from serving_faults.checking import Finding

_HEAD = """\
# What the server withstands

Written by `scripts/serve-faults{option}` on {date}; do not edit.

Every line is a fault that was sent to `parnet-deploy serve` as its users start it, over a socket of
its own on loopback{also}.
After each, the server has to be alive and ready, to give a good request the engine's own scores,
and not to have needed more than {memory} MiB of memory on top at any moment. What is not right is
**bold**.

{versions}

| | requests | more than one request | not right | died, or answered no more |
|---|---|---|---|---|
{summary}

{growth}
"""

_TRITON = """\

Triton's column is no verdict on Triton: another reader of the protocol may rightly be more lenient,
and its Python backend stands in for ONNX Runtime's, which its wheel does not have. It shows what a
client meets there. A dash: the fault has no meaning there; below each table it says why.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one server did.

    Attributes:
        name: whose it is.
        findings: of faults that are one request, and of those that are more.
        deaths: how often it died.
    """

    name: str
    findings: Sequence[Finding]
    scenarios: Sequence[Finding]
    deaths: int

    @property
    def by_fault(self) -> Mapping[tuple[str, str], Finding]:
        """By group and title."""
        return {(each.group, each.title): each for each in (*self.findings, *self.scenarios)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that is told.

    Attributes:
        date: of the run.
        versions: of what was run, in a sentence.
        memory: by how many MiB a fault may raise a server's memory.
        growth: what the whole list, sent once more, left behind, in a sentence.
        sides: ours first.
        alone: why a fault is not for others, by group and title.
        untried: what could not be tried here, and why, by title.
    """

    date: str
    versions: str
    memory: int
    growth: str
    sides: Sequence[Side]
    alone: Mapping[tuple[str, str], str]
    untried: Mapping[str, str]


def page(report: Report) -> str:
    """The page, in Markdown."""
    ours, *others = report.sides
    text = _HEAD.format(
        option=" --triton FOLDER" if others else "",
        date=report.date,
        also=", and to a real Triton with the same network and the same bytes" if others else "",
        memory=report.memory,
        versions=report.versions,
        summary="\n".join(_summary(side) for side in report.sides),
        growth=report.growth,
    )
    parts = [text + _TRITON if others else text]
    every = (*ours.findings, *ours.scenarios)
    for group, found in groupby(every, key=lambda finding: finding.group):
        parts.append(_table(group, list(found), others, report.alone))
    if report.untried:
        lines = [f"- {title}: {why}" for title, why in report.untried.items()]
        parts.append("\n".join(["## Not tried on this machine", "", *lines, ""]))
    return "\n".join(parts)


def _summary(side: Side) -> str:
    wrong = sum(bool(each.wrong) for each in (*side.findings, *side.scenarios))
    return (
        f"| {side.name} | {len(side.findings)} | {len(side.scenarios)} | {wrong} | {side.deaths} |"
    )


def _table(
    group: str,
    found: Sequence[Finding],
    others: Sequence[Side],
    alone: Mapping[tuple[str, str], str],
) -> str:
    names = ["ours", *(side.name for side in others)]
    lines = [
        f"## {group[0].upper()}{group[1:]}",
        "",
        f"| fault | right | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for each in found:
        cells = [_cell(each)]
        cells += [_cell(side.by_fault.get((each.group, each.title))) for side in others]
        lines.append(f"| {_escaped(each.title)} | {each.expected} | {' | '.join(cells)} |")
    reasons = {alone[each.group, each.title] for each in found if (each.group, each.title) in alone}
    if others and reasons:
        lines += ["", f"{others[0].name}: {'; '.join(sorted(reasons))}."]
    return "\n".join([*lines, ""])


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    text = _escaped(finding.measured)
    if not finding.wrong:
        return text
    why = "" if finding.wrong.startswith((finding.measured, finding.expected)) else finding.wrong
    return f"**{text}**" + (f" ({_escaped(why)})" if why and why not in text else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
