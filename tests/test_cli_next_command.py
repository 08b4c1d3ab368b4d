"""What `export` says comes next: a command that works on this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parnet_deploy.cli import next_command as next_module
from parnet_deploy.engine import choose as choose_module
from parnet_deploy.quantise.images import named_source, open_images
from parnet_deploy.runtime.machine import CudaDriver, Gpu
from parnet_deploy.spec import Backend, Preprocessing
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import scheme_of


@pytest.mark.parametrize(
    ("precision", "target", "packages", "here", "words"),
    [
        ("fp32", "tensorrt", (), (), "--split-streams"),
        ("fp32", "ncnn", (), (), "next, where ncnn is installed"),
        ("int8", "onnxruntime", (), (), "--split-streams --backend onnxruntime"),
        ("bf16", "openvino", ("openvino",), (), "--split-streams --backend openvino"),
        ("int8", "openvino", (), (), "next, where OpenVINO is installed, which it is not here"),
        ("int8", "tensorrt", ("tensorrt-rtx",), (), "--split-streams --backend tensorrt-rtx"),
        ("int8", "tensorrt", (), (), "next, where TensorRT is installed"),
        ("int8", "tensorrt", ("tensorrt",), (), "next, where TensorRT runs, which it does not"),
        ("int8", "tensorrt", ("tensorrt", "tensorrt-rtx"), ("8.6",), "--backend tensorrt"),
        ("bf16", "tensorrt", ("tensorrt-rtx",), (), "--split-streams --backend tensorrt-rtx"),
        ("bf16", "tensorrt", ("openvino",), (), "--split-streams"),
        ("fp8", "tensorrt", ("tensorrt-rtx",), (), "tensorrt-rtx --compute-capability 8.9"),
        ("fp8", "tensorrt-rtx", ("tensorrt-rtx",), ("8.6", "12.0"), "--compute-capability 12.0"),
        ("fp32", "tensorrt-rtx", ("tensorrt-rtx",), (), "--backend tensorrt-rtx"),
    ],
)
def test_the_next_command_after_an_export_works_here(
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    target: Backend,
    packages: tuple[str, ...],
    here: tuple[str, ...],
    words: str,
) -> None:
    gpus = tuple(Gpu(index=0, name="a GPU", compute_capability=c, memory=0) for c in here)
    driver = CudaDriver(cuda="13.0", gpus=gpus, problem=None if gpus else "no GPU")
    known = dict.fromkeys(packages, "1.0")
    monkeypatch.setattr(choose_module, "installed", known.get)
    monkeypatch.setattr(next_module, "installed", known.get)
    monkeypatch.setattr(choose_module, "import_problem", lambda module: None)
    monkeypatch.setattr(choose_module, "cuda_driver", lambda: driver)
    monkeypatch.setattr(choose_module, "cuda_required", lambda package: 13)
    monkeypatch.setattr(choose_module, "provider_problem", lambda name: "no GPU")
    scheme = scheme_of(precision, target)
    quantisation = None if scheme is None else SimpleNamespace(scheme=scheme)
    manifest = SimpleNamespace(precision=precision, quantisation=quantisation)
    bundle: Any = SimpleNamespace(path=Path("a model"), manifest=manifest)
    said = next_module.next_command(bundle, target)
    assert "parnet-deploy build-engine 'a model' --split-streams" in said
    assert words in said if words.startswith("next") else said.endswith(words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, ""),
        ("60 images of digits", " --calibrate digits"),
        ("12 of 1198 images of digits, seed 0", " --calibrate digits"),
        ("training on digits", " --calibrate digits"),
        ("training on imagefolder", " --images FOLDER"),
        ("40 images of imagefolder digits", " --images FOLDER"),
        ("6 images of the folder digits", " --images FOLDER"),
        ("6 images of the array 'digits' of digits.npz", " --images FOLDER"),
        ("6 images of birds", " --images FOLDER"),
    ],
)
def test_the_next_command_after_a_build_feeds_what_is_judged(
    source: str | None, words: str
) -> None:
    """On noise what is quantised is not, and the command would end with a status of 3."""
    calibration = SimpleNamespace(source=source)
    quantisation = None if source is None else SimpleNamespace(calibration=calibration)
    manifest = SimpleNamespace(quantisation=quantisation)
    engine: Any = SimpleNamespace(path=Path("an engine"), manifest=manifest)
    said = next_module.next_verification(engine)
    assert said == f"next: parnet-deploy verify 'an engine'{words}"


def test_what_a_calibration_records_of_a_data_set_names_it() -> None:
    pytest.importorskip("sklearn")
    for limit in (8, None):
        found = open_images("digits", Preprocessing(size=(8, 8)), limit=limit)
        assert named_source(found.source) == "digits"
