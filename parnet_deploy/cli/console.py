"""What people read on the terminal."""

from __future__ import annotations

from rich.console import Console

console = Console()
"""Standard output: results."""

errors = Console(stderr=True)
"""Standard error: progress and warnings, so that ``--json`` output stays clean."""

_KIB = 1024


def human_bytes(size: int) -> str:
    """A size as people write it: ``1.5 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < _KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KIB
    return f"{value:.1f} GiB"
