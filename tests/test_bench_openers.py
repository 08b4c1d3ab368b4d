"""From a contestant to something that runs: engines of this project, and of other graphs."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import export_tiny

from parnet_deploy.bench.contest import openers
from parnet_deploy.bench.contest.openers import OPENERS, open_contestant
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.graph_engine import OPENER, GraphEngine, build_graph
from parnet_deploy.bench.peers import PEERS, Preparation
from parnet_deploy.bundle import MODEL_GRAPH, EngineBundle, ModelBundle, seal, sha256
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import EngineError, UsageError
from parnet_deploy.spec import IMAGES, LOGITS, Array, Backend


@pytest.fixture(scope="module")
def engine(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=True)
    final = tmp_path_factory.mktemp("engines") / "tiny-split"
    return build_engine(tiny_bundle, final, builder, split=True)


@pytest.fixture
def images(rng: np.random.Generator) -> Array:
    return rng.standard_normal((1, 3, 64, 64)).astype(np.float32)


def contestant(opener: str, path: Path) -> Contestant:
    return Contestant(
        name="it", group="ours", network="tiny", opener=opener, path=str(path), images="none.npz"
    )


def wanted(bundle: ModelBundle, images: Array) -> Array:
    session = onnxruntime.InferenceSession(bundle.path / MODEL_GRAPH)
    answer: Array = session.run([LOGITS], {IMAGES: images})[0]
    return answer


def test_an_engine_of_this_project(
    engine: EngineBundle, tiny_bundle: ModelBundle, images: Array
) -> None:
    opened = open_contestant(contestant("engine", engine.path))
    answer = opened.runner.run({IMAGES: images})[LOGITS]
    np.testing.assert_allclose(answer, wanted(tiny_bundle, images), rtol=1e-4, atol=1e-5)
    assert opened.precision == "fp32"
    assert opened.kernels is None
    assert "parnet-deploy" in opened.versions
    assert any(name.startswith("onnxruntime") for name in opened.versions)
    opened.runner.close()


def test_what_an_engine_says_of_itself(engine: EngineBundle) -> None:
    """Kernels count where all are known."""

    def changed(*kernels: int | None) -> EngineBundle:
        pairs = zip(engine.manifest.stages, kernels, strict=False)
        stages = tuple(replace(stage, kernels=count) for stage, count in pairs)
        manifest = replace(engine.manifest, stages=stages)
        return type(engine)(path=engine.path, manifest=manifest, manifest_sha256="")

    assert openers._kernels(changed(3, 4)) == 7
    assert openers._kernels(changed(3, None)) is None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_engine_of_a_graph_in_float16_is_named_by_what_the_cpu_computes(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    model = export_tiny(tmp_path / "half", precision="fp16")
    options = BuildOptions(provider="cpu" if backend == "onnxruntime" else "auto", threads=1)
    builder = make_builder(backend, options, split=False)
    engine = build_engine(model, tmp_path / "engine", builder, split=False)
    assert (engine.manifest.precision, engine.manifest.computes) == ("fp16", "fp32")
    assert engine.manifest.arithmetic == "fp16, computed in fp32"
    opened = open_contestant(contestant("engine", engine.path))
    assert opened.precision == "fp32"
    opened.runner.close()


def test_an_older_engine_is_named_by_its_graphs(engine: EngineBundle, tmp_path: Path) -> None:
    """TF32 and all else that is computed stands in the manifest; older ones have no such entry."""
    copy = shutil.copytree(engine.path, tmp_path / "copy")
    for computes, named in (("tf32", "tf32"), ("", "fp32")):
        seal(copy, replace(engine.manifest, computes=computes))
        opened = open_contestant(contestant("engine", copy))
        assert opened.precision == named
        opened.runner.close()


def test_every_peer_names_an_opener(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    """Of those that prepare nothing it is asked; the others are opened in their own tests."""
    for name in ("torch", "torch-fused", "torch-compile", "torch-compile-fused"):
        asked = Preparation(
            peer=name,
            network="tiny",
            model=str(tiny_bundle.path),
            workspace=str(tmp_path),
            images="none.npz",
        )
        assert PEERS[name].prepare(asked).opener in OPENERS


def test_no_such_opener(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"an opener is one of engine, .*; not 'magic'"):
        open_contestant(contestant("magic", tmp_path))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "ncnn"])
def test_an_engine_of_a_graph_in_no_bundle(
    backend: Backend, tiny_bundle: ModelBundle, images: Array, tmp_path: Path
) -> None:
    manifest = tiny_bundle.manifest
    build_graph(
        tiny_bundle.path / MODEL_GRAPH,
        tmp_path,
        backend=backend,
        device="cpu",
        batch=1,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
    )
    opened = open_contestant(contestant(OPENER, tmp_path))
    answer = opened.runner.run({IMAGES: images})[LOGITS]
    np.testing.assert_allclose(answer, wanted(tiny_bundle, images), rtol=1e-3, atol=1e-4)
    assert opened.versions
    opened.runner.close()


def test_no_contestant_reads_its_files_once_more_to_check_them(
    engine: EngineBundle,
    tiny_bundle: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would count as time to the first answer, and for some contestants only."""
    manifest = tiny_bundle.manifest
    build_graph(
        tiny_bundle.path / MODEL_GRAPH,
        tmp_path,
        backend="onnxruntime",
        device="cpu",
        batch=1,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
    )
    digested: list[Any] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: digested.append(a) or digest(*a))
    open_contestant(contestant("engine", engine.path)).runner.close()
    open_contestant(contestant(OPENER, tmp_path)).runner.close()
    assert digested == []
    assert sha256(engine.path / "fusion.onnx")
    assert len(digested) == 1, "digests are noticed"


def test_a_graph_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot read .*graph-engine.json: No such file"):
        open_contestant(contestant(OPENER, tmp_path))


def test_a_graph_engine_that_does_not_load(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    """Nothing is said of a command that would build it: that builds networks of this project."""
    manifest = tiny_bundle.manifest
    build_graph(
        tiny_bundle.path / MODEL_GRAPH,
        tmp_path,
        backend="onnxruntime",
        device="cpu",
        batch=1,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
    )
    (tmp_path / "whole.onnx").write_bytes(b"damaged")
    with pytest.raises(EngineError, match="cannot run here") as error:
        open_contestant(contestant(OPENER, tmp_path))
    assert "build it again" not in str(error.value)
    assert GraphEngine.__name__ not in str(error.value)
