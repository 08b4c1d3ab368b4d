"""Run after run, no backend on the CPU lets the process grow: a whole network, one in stages."""

from __future__ import annotations

import ctypes
import gc
import itertools
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.runtime import Runner
from parnet_deploy.spec import IMAGES, Array, Backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's count of pages"),
]

SETTLING = 400
"""Runs in which allocators come to their size."""

RUNS = 1700
"""Of each of six runners: ten thousand in all."""

ALLOWED = 1 << 19
"""Bytes: some 600 a run. An image has 49,152, the smallest map between stages 1,536."""


@pytest.fixture(params=["onnxruntime", "openvino", "ncnn"])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


@pytest.fixture(params=[False, True], ids=["whole", "split"])
def engine(
    request: pytest.FixtureRequest, backend: Backend, tiny_bundle: ModelBundle, tmp_path: Path
) -> EngineBundle:
    split: bool = request.param
    options = BuildOptions(provider="cpu" if backend == "onnxruntime" else "auto", threads=1)
    builder = make_builder(backend, options, split=split)
    built = build_engine(tiny_bundle, tmp_path / "engine", builder, split=split)
    assert len(built.manifest.stages) == (4 if split else 1)
    return built


def images() -> dict[str, Array]:
    noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    return {IMAGES: noise.astype(np.float32)}


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_runtime_memory import growth, images
from parnet_deploy.bundle import open_engine_bundle
from parnet_deploy.runtime import open_runner
with open_runner(open_engine_bundle(Path(sys.argv[2]))) as runner:
    expected = runner.run(images())["logits"]
    assert np.isfinite(expected).all()
    grown = growth(runner, images())
    np.testing.assert_array_equal(runner.run(images())["logits"], expected)
print(grown)
"""
"""In a process of its own: what other tests have loaded comes and goes in this one."""


def test_runs_do_not_grow_the_process(engine: EngineBundle) -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(engine.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < ALLOWED


LEAK = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_runtime_memory import growth, images
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.spec import TensorSpec
kept = []

def leak(feeds):
    kept.append(np.ones(int(sys.argv[2]) // 4, np.float32))
    return {"logits": np.zeros((1, 7), np.float32)}

x = TensorSpec(name="images", shape=(1, 3, 64, 64), dtype="float32")
y = TensorSpec(name="logits", shape=(1, 7), dtype="float32")
with FunctionRunner(leak, inputs=(x,), outputs=(y,)) as leaking:
    print(growth(leaking, images()))
"""


def test_a_leak_is_noticed(tiny_bundle: ModelBundle) -> None:
    """One copy of the smallest map that crosses between stages, kept in each run."""
    smallest = min(cut.bytes for cut in tiny_bundle.manifest.cuts)
    command = [sys.executable, "-c", LEAK, str(Path(__file__).parent), str(smallest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > ALLOWED


def growth(runner: Runner, feeds: Mapping[str, Array]) -> int:
    """Bytes by which the process has grown over half of `RUNS`, after it has settled.

    The lesser of both halves: an allocator that takes one more block does so in one of them, and a
    leak is in both.
    """
    for _ in range(SETTLING):
        runner.run(feeds)
    sizes = [resident_bytes()]
    for _ in range(2):
        for _ in range(RUNS // 2):
            runner.run(feeds)
        sizes.append(resident_bytes())
    return min(after - before for before, after in itertools.pairwise(sizes))


def resident_bytes() -> int:
    """What the process has in memory now, but for what allocators keep for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
