"""Run after run, no backend on the CPU lets the process grow: a whole network, one in stages."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.runtime import FunctionRunner, Runner, open_runner
from parnet_deploy.spec import IMAGES, LOGITS, Array, Backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's count of pages"),
]

SETTLING = 400
"""Runs in which allocators come to their size."""

RUNS = 1700
"""Of each of six runners: ten thousand in all."""

ALLOWED = 1 << 20
"""Bytes: some 600 a run. An image has 49,152, the smallest map between stages 1,536."""


@pytest.fixture(params=["onnxruntime", "openvino", "ncnn"])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    return name


@pytest.fixture(params=[False, True], ids=["whole", "split"])
def runner(
    request: pytest.FixtureRequest, backend: Backend, tiny_bundle: ModelBundle, tmp_path: Path
) -> Iterator[Runner]:
    split: bool = request.param
    options = BuildOptions(provider="cpu" if backend == "onnxruntime" else "auto", threads=1)
    builder = make_builder(backend, options, split=split)
    engine = build_engine(tiny_bundle, tmp_path / "engine", builder, split=split)
    assert len(engine.manifest.stages) == (4 if split else 1)
    with open_runner(engine) as opened:
        yield opened


def images() -> dict[str, Array]:
    noise = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    return {IMAGES: noise.astype(np.float32)}


def test_runs_do_not_grow_the_process(runner: Runner) -> None:
    feeds = images()
    expected = runner.run(feeds)[LOGITS]
    assert np.isfinite(expected).all()
    assert growth(runner, feeds) < ALLOWED
    np.testing.assert_array_equal(runner.run(feeds)[LOGITS], expected)


def test_a_leak_is_noticed(tiny_bundle: ModelBundle) -> None:
    """One copy of the smallest map that crosses between stages, kept in each run."""
    kept: list[Array] = []
    smallest = min(cut.bytes for cut in tiny_bundle.manifest.cuts)

    def leak(feeds: Mapping[str, Array]) -> dict[str, Array]:
        kept.append(np.ones(smallest // 4, np.float32))
        return {LOGITS: np.zeros((1, 7), np.float32)}

    manifest = tiny_bundle.manifest
    with FunctionRunner(leak, inputs=manifest.inputs, outputs=manifest.outputs) as leaking:
        assert growth(leaking, images()) > ALLOWED


def growth(runner: Runner, feeds: Mapping[str, Array]) -> int:
    """Bytes by which the process has grown over `RUNS` runs, after it has settled."""
    for _ in range(SETTLING):
        runner.run(feeds)
    before = resident_bytes()
    for _ in range(RUNS):
        runner.run(feeds)
    return resident_bytes() - before


def resident_bytes() -> int:
    """What the process has in memory now, but for what allocators keep for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
