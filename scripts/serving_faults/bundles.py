"""Engine bundles that are changed, and are sound for all that their checksums tell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def sign(bundle: Path, name: str) -> None:
    """Write a changed file's digest into the manifest."""
    data = (bundle / name).read_bytes()

    def note(content: dict[str, Any]) -> None:
        content["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    change_manifest(bundle, note)


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, and its own digest beside it."""
    manifest = bundle / MANIFEST
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content, indent=2) + "\n")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (bundle / "manifest.sha256").write_text(f"{digest}  {MANIFEST}\n")
