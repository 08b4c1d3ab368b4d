"""Looking something up by the name that a person wrote."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from parnet_deploy.errors import UsageError

T = TypeVar("T")


def lookup(kind: str, name: str, table: Mapping[str, T], *, prefix: str = "") -> T:
    """Find a named value.

    Args:
        kind: what the values are, for the message: ``variant``.
        name: what was written.
        table: what there is, under names in lower case.
        prefix: what may stand in front of a name.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    spelled = {known: known for known in table} | {f"{prefix}{known}": known for known in table}
    if (written := name.lower()) in spelled:
        return table[spelled[written]]
    near = difflib.get_close_matches(written, spelled, n=1, cutoff=0.3)
    hint = f"did you mean '{spelled[near[0]]}'? " if near else ""
    raise UsageError(f"there is no {kind} '{name}'; {hint}Known: {', '.join(table)}")
