"""What is wrong with what was built, in words that lose no name.

The same problem of many layers is one sentence. Up to `NAMED` names are told; where there are more,
it is said how many, and that the report has all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parnet_deploy.verify.result import REPORT_FILE, CheckResult
from parnet_deploy.verify.tolerances import RungName

NAMED = 12
"""Names that are told at most; the report has all."""

_SENTENCES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        name: of what has it: a layer or a tensor.
        one: the sentence. Where `several` is given, a template of it with ``{names}`` and
            ``{files}``.
        several: the same template for several names; empty where no other has the same problem.
        file: where it was found; empty where `one` tells or there is none.
    """

    name: str
    one: str
    several: str = ""
    file: str = ""

    @classmethod
    def of(cls, name: str, verbs: tuple[str, str], rest: str, file: str = "") -> Problem:
        """What several may have: the name, the verb for one or for several, and the rest."""
        one, several = (f"{{names}} {verb} {rest}" for verb in verbs)
        return cls(name=name, one=one, several=several, file=file)

    def __str__(self) -> str:
        """The sentence of this one alone."""
        return self.one.format(names=self.name, files=self.file) if self.several else self.one


def in_words(problems: Sequence[Problem]) -> str:
    """All of them in one line: sentences for the first, names for the others.

    Args:
        problems: what is wrong.

    Returns:
        Empty where nothing is.
    """
    groups: dict[object, list[Problem]] = {}
    for number, problem in enumerate(problems):
        groups.setdefault(problem.several or number, []).append(problem)
    first, rest = list(groups.values())[:_SENTENCES], list(groups.values())[_SENTENCES:]
    said = [_sentence(group) for group in first]
    if rest:
        names = dict.fromkeys(problem.name for group in rest for problem in group)
        said.append(f"and {sum(map(len, rest))} more, of {listed(names)}")
    return "; ".join(said)


def check_of(rung: RungName, name: str, problems: Iterable[Problem], good: str) -> CheckResult:
    """What holds where there is no problem, and fails where there is one.

    Args:
        rung: which rung it is of.
        name: what must hold.
        problems: what is wrong.
        good: what is said where nothing is.
    """
    every = list(problems)
    return CheckResult(
        rung=rung,
        name=name,
        verdict="failed" if every else "passed",
        detail=in_words(every) or good,
        problems=tuple(map(str, every)),
    )


def listed(names: Iterable[str]) -> str:
    """Names with commas between: all, or the first, how many more there are, and what has all."""
    every = list(names)
    if len(every) <= NAMED:
        return ", ".join(every)
    more = f"{len(every) - NAMED} more (all are in {REPORT_FILE})"
    return f"{', '.join(every[:NAMED])} and {more}"


def counted(types: Mapping[str, str], noun: str = "") -> str:
    """``14 layers in int8, 2 in fp16 (stem1, head)``: those of a rarer type by name.

    Args:
        types: by layer.
        noun: what they are called, such as `` layer``; it is told once.
    """
    words: list[str] = []
    for kind, count in Counter(types.values()).most_common():
        names = [name for name, found in types.items() if found == kind]
        which = f" ({listed(names)})" if words else ""
        what = f"{noun}{'s' * (count != 1)}" if noun and not words else ""
        words.append(f"{count}{what} in {kind}{which}")
    return ", ".join(words)


def _sentence(group: Sequence[Problem]) -> str:
    """What a group has in common, with all their names and files."""
    first = group[0]
    if len(group) == 1:
        return str(first)
    names = list(dict.fromkeys(problem.name for problem in group))
    *some, last = dict.fromkeys(problem.file for problem in group)
    files = f"{', '.join(some)} and {last}" if some else last
    template = first.one if len(names) == 1 else first.several
    return template.format(names=listed(names), files=files)
