"""The rungs themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.runtime import OnnxRuntimeRunner
from parnet_deploy.verify import opening


def test_the_onnx_rungs_run_the_graphs_as_they_stand(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An ONNX Runtime engine is its rewrites: with them here, too, it would meet only itself."""
    rewritten = []

    def watch(*arguments: Any, optimise: bool = True, **keywords: Any) -> OnnxRuntimeRunner:
        rewritten.append(optimise)
        return OnnxRuntimeRunner(*arguments, optimise=optimise, **keywords)

    monkeypatch.setattr(opening, "OnnxRuntimeRunner", watch)
    opening.open_whole(tiny_bundle, tmp_path / "whole").close()
    opening.open_stages(tiny_bundle, tmp_path / "stages").close()
    stages = len(tiny_bundle.manifest.stages)
    assert rewritten == [False] * 2 * (1 + stages), "each graph, and its copy that shows its blocks"
