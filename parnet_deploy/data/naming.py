"""Names in messages."""

from __future__ import annotations

from collections.abc import Sequence


def enumerate_names(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are: ``a, b and 3 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
