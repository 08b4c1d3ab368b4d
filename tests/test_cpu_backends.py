"""OpenVINO and ncnn as people use them: built, verified, predicted with, evaluated, looked into."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import evaluated
import numpy as np
import pytest
from commands import call
from conftest import export_tiny

from parnet_deploy.bundle import EngineBundle, open_bundle, open_engine_bundle, open_model
from parnet_deploy.cli.inspection import inspect_bundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import BundleError
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import Backend, count_block, layout
from parnet_deploy.spec.precision import rounding_tolerance
from parnet_deploy.verify.result import Verification

Capture = pytest.CaptureFixture[str]

BACKENDS: tuple[Backend, ...] = ("openvino", "ncnn")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of batch 1 to 8, engines of it by ``BACKEND`` and ``BACKEND-split``, and images."""
    from parnet_deploy.cli.main import run

    room = tmp_path_factory.mktemp("backends")
    checkpoint = evaluated.write_checkpoint(room / "checkpoint.safetensors")
    evaluated.write_images(room / "images")
    options = ("--output", str(room / "model"), "--batch", "1:4:8", "--for", "openvino")
    assert run(["export", "--checkpoint", str(checkpoint), *options]) == 0
    model = open_model(room / "model")
    for backend in ("onnxruntime", *BACKENDS):
        provider = "cpu" if backend == "onnxruntime" else "auto"
        for split in (False, True):
            builder = make_builder(backend, BuildOptions(provider=provider), split=split)
            build_engine(model, room / (backend + "-split" * split), builder, split=split)
    return room


def as_json(capsys: Capture, *arguments: object) -> Any:
    result = call(capsys, *arguments, "--json")
    assert result.status == 0, result
    return json.loads(result.out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_engines_are_built_by_name_and_pass_the_ladder_and_the_probes(
    room: Path, capsys: Capture, tmp_path: Path, backend: str
) -> None:
    engine = tmp_path / "engine"
    told = as_json(
        capsys,
        *("build-engine", room / "model", "--backend", backend, "--threads", 2),
        *("--output", engine),
    )
    assert told["manifest"]["backend"] == backend
    assert [stage["threads"] for stage in told["manifest"]["stages"]] == [2]
    shutil.copytree(room / "model", tmp_path / "model")
    split = room / f"{backend}-split"
    found: Verification = as_json(
        capsys,
        *("verify", engine, "--with", split, "--samples", 4, "--output", tmp_path / "report"),
        *("--require", "engine", "--require", "split-engine"),
    )
    assert {rung["verdict"] for rung in found["rungs"]} == {"passed"}
    assert {probe["verdict"] for probe in found["probes"]} == {"passed"}
    assert {probe["rung"] for probe in found["probes"]} == {"engine", "split-engine"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions_and_measures_are_those_of_onnx_runtime(
    room: Path, capsys: Capture, backend: str
) -> None:
    photos = sorted((room / "images").rglob("*.png"))[:5]
    expected, actual = (
        [
            [guess["label"] for guess in image["guesses"]]
            for image in as_json(capsys, "predict", room / name, *photos)["predictions"]
        ]
        for name in ("onnxruntime", backend)
    )
    assert len(expected) == 5
    assert actual == expected
    data = ("--data", f"imagefolder:{room / 'images'}")
    right, found = (
        as_json(capsys, "evaluate", room / name, *data)["measures"]
        for name in ("onnxruntime", f"{backend}-split")
    )
    assert found["top1"] == right["top1"]
    assert found["confusion"] == right["confusion"]
    assert found["loss"] == pytest.approx(right["loss"], abs=1e-5)


def bundle(room: Path, name: str) -> EngineBundle:
    return open_engine_bundle(room / name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inspect_shows_the_layers_and_weights_of_every_stage(
    room: Path, capsys: Capture, backend: str
) -> None:
    engine = bundle(room, f"{backend}-split")
    spec = engine.manifest.spec
    counts = {block.name: count_block(spec, block) for block in layout(spec)}
    found = inspect_bundle(engine, layers=True)
    assert found.unknown == ()
    convolutions = 0
    for part in found.parts:
        assert part.weights is not None
        least = sum(counts[name].weights for name in part.blocks)
        assert least < part.weights["float32"] < 2 * least
        assert part.kinds is not None
        assert part.layers is not None
        assert sum(part.kinds.values()) == len(part.layers) > len(part.blocks)
        assert not part.kinds.keys() & {"Parameter", "Constant", "Result", "Input"}
        made = {value for layer in part.layers for value in layer.makes}
        assert made >= {spec.name for spec in part.outputs}
        convolutions += sum(n for kind, n in part.kinds.items() if "Convolution" in kind)
    assert convolutions >= sum(block.kind != "head" for block in layout(spec))
    text = call(capsys, "inspect", engine.path, "--layers").out
    assert f"an engine bundle: {backend}" in text
    assert "Convolution" in text


def test_without_openvino_it_says_what_would_be_shown(
    room: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    text = call(capsys, "inspect", room / "openvino").out
    assert "not shown: openvino is not installed" in text
    assert "parnet-deploy[openvino]" in text
    (part,) = inspect_bundle(open_bundle(room / "openvino")).parts
    assert (part.kinds, part.weights) == (None, None)


@pytest.mark.parametrize(
    ("backend", "file", "what"),
    [("openvino", "whole.xml", "model of OpenVINO"), ("ncnn", "whole.param", "layers of ncnn")],
)
def test_a_damaged_file_is_no_network_to_look_into(
    room: Path, tmp_path: Path, backend: str, file: str, what: str
) -> None:
    copy = shutil.copytree(room / backend, tmp_path / "copy")
    text = (copy / file).read_bytes()
    (copy / file).write_bytes(text[: len(text) // 2])
    with pytest.raises(BundleError, match=f"{file} cannot be read as a? ?{what}: "):
        inspect_bundle(open_engine_bundle(copy, check=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_stages_have_the_threads_that_the_manifest_says(room: Path, backend: str) -> None:
    """Those of ONNX Runtime's engine, since the same work is divided."""
    threads, expected = (
        {stage.name: stage.threads for stage in bundle(room, name).manifest.stages}
        for name in (f"{backend}-split", "onnxruntime-split")
    )
    assert threads == expected
    assert min(number for number in threads.values() if number is not None) >= 1
    assert [stage.threads for stage in bundle(room, backend).manifest.stages] == [None]


@pytest.mark.parametrize("split", [False, True])
def test_openvino_runs_graphs_in_float16_whose_casts_it_merges_with_its_inputs(
    split: bool, tmp_path: Path, capsys: Capture
) -> None:
    """In float32, which is said."""
    model = export_tiny(tmp_path / "half", precision="fp16")
    full = export_tiny(tmp_path / "full")
    builder = make_builder("openvino", BuildOptions(threads=1), split=split)
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    answers = []
    for bundle in (model, full):
        engine = build_engine(bundle, tmp_path / f"{bundle.path.name}-engine", builder, split=split)
        with open_runner(engine) as runner:
            answers.append(runner.run({"images": images})["logits"])
    shown = call(capsys, "inspect", tmp_path / "half-engine").out
    assert "fp16, computed in fp32" in shown
    error = np.abs(answers[0] - answers[1]).max() / np.abs(answers[1]).max()
    assert error < rounding_tolerance("fp16", model.manifest.spec)
