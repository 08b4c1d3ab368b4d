"""Versions of the tools that take part, as manifests and reports name them."""

from __future__ import annotations

import contextlib
import importlib.metadata


def versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed, by their names in the registry."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
