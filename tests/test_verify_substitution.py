"""An engine that computes in something else than was asked for: what is believed, and said once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import verify_faults as faults
import verify_precision as precise
from conftest import tiny_spec

from parnet_deploy.bundle import (
    BatchRange,
    EngineManifest,
    EngineStage,
    ModelBundle,
    ModelReference,
)
from parnet_deploy.cli import main
from parnet_deploy.errors import MissingDependencyError
from parnet_deploy.spec import Backend, DeployForm, Preprocessing
from parnet_deploy.spec.precision import Precision
from parnet_deploy.verify import built_engine


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    room = tmp_path_factory.mktemp("fp16")
    return precise.export_precision(room / "model", room / "none.npz", "fp16")


def claims(backend: Backend, asked: str, computes: str, **target: str) -> EngineManifest:
    """What an engine on a CPU says of itself; nothing else of it is looked at."""
    stage = EngineStage(name="whole", file="x", device="cpu", inputs=(), outputs=())
    spec = tiny_spec()
    return EngineManifest(
        name="x",
        backend=backend,
        split=False,
        model=ModelReference(name="x", manifest_sha256="", path="."),
        spec=spec,
        form=DeployForm(),
        precision=asked,
        batch=BatchRange(),
        softmax=False,
        preprocessing=Preprocessing(size=spec.image_size),
        target=target,
        options={},
        computes=computes,
        inputs=(),
        outputs=(),
        stages=(stage,),
        tools={},
    )


@pytest.mark.parametrize(
    ("backend", "asked", "computes", "has", "verdict", "words"),
    [
        ("openvino", "bf16", "fp32", True, "failed", "could have computed in bf16 on this CPU"),
        ("openvino", "bf16", "fp32", False, "passed", "has no kernels in bf16 for this CPU"),
        ("openvino", "fp16", "fp32", True, "passed", "compute fp16 in fp32 on every CPU"),
        ("openvino", "fp16", "bf16", True, "failed", "could have computed in fp16"),
        ("openvino", "int8", "fp32", False, "failed", "could have computed in int8"),
        ("onnxruntime", "fp16", "fp32", True, "failed", "could have computed in fp16 on this CPU"),
        ("onnxruntime", "fp16", "fp32", False, "passed", "has no kernels in fp16 for this CPU"),
        ("onnxruntime", "fp16", "fp16", True, "passed", ""),
    ],
)
def test_fp32_sold_as_less_on_a_cpu_fails_where_the_cpu_could_have_computed_it(
    backend: Backend,
    asked: Precision,
    computes: str,
    has: bool,
    verdict: str,
    words: str,
    fp16: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the engine says is not believed: the CPU is asked."""
    monkeypatch.setattr(built_engine, "has_bfloat16", lambda: has)
    engine = claims(backend, asked, computes, architecture="aarch64" if has else "x86_64")
    model = replace(fp16.manifest, precision=asked)
    computed, _ = built_engine.check_engine(
        "engine", engine, model, built_engine.EngineTypes(types={}, silent="not looked into")
    )
    assert computed.verdict == verdict
    assert words in computed.detail


def test_a_cpu_that_nobody_can_ask_is_not_verified(
    fp16: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> bool:
        raise MissingDependencyError("OpenVINO cannot be imported")

    monkeypatch.setattr(built_engine, "has_bfloat16", missing)
    found = built_engine.substitution(
        claims("openvino", "bf16", "fp32"), replace(fp16.manifest, precision="bf16")
    )
    assert found.verdict == "not verified"
    assert "OpenVINO cannot be imported" in found.words


def test_why_an_engine_does_not_open_is_said_once(
    fp16: ModelBundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = faults.build(fp16, tmp_path / "engine", split=False)
    faults.reseal_engine(engine.path, target={**engine.manifest.target, "vectors": "avx1024"})
    assert main.run(["verify", str(engine.path), "--samples", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("avx1024") == 1
    assert shown.count("it does not open: its rung says why") == 1
    page = (engine.path / "verify.html").read_text()
    assert page.count("avx1024") == 1
    required = ("--require", "engine")
    assert main.run(["verify", str(engine.path), "--samples", "1", *required]) == 1
    assert " ".join(capsys.readouterr().out.split()).count("avx1024") == 1
