"""Ten thousand runs in ONNX Runtime leave no growth in the process's memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.runtime import OnnxRuntimeRunner, Runner, SplitRunner, StageRunner
from parnet_deploy.runtime.trial import TRIAL_GRAPH
from parnet_deploy.spec import TensorSpec

X, Y = (TensorSpec(name=name, shape=(2,), dtype="float32") for name in ("x", "y"))


@pytest.fixture(params=["whole", "split"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    path = tmp_path / "relu.onnx"
    path.write_bytes(TRIAL_GRAPH)
    made: OnnxRuntimeRunner | SplitRunner = OnnxRuntimeRunner(path, inputs=(X,), outputs=(Y,))
    if request.param == "split":
        stage = StageRunner(name="relu", device="cpu", runner=made)
        made = SplitRunner([stage], inputs=(X,), outputs=(Y,))
    with made:
        yield made


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's count of pages")
def test_ten_thousand_runs_do_not_grow_the_process(runner: Runner) -> None:
    feeds = {"x": np.array([-1.0, 2.0], dtype=np.float32)}
    for _ in range(1000):
        runner.run(feeds)
    before = resident_bytes()
    for _ in range(10_000):
        assert runner.run(feeds)["y"][1] == 2.0
    assert resident_bytes() - before < 2 << 20


def resident_bytes() -> int:
    """What the process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
