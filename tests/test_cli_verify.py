"""``parnet-deploy verify`` as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import verify_faults as faults
from conftest import Cli, clean_error

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.spec import decode
from parnet_deploy.verify.result import Verification
from parnet_deploy.verify.tolerances import FLOAT32
from parnet_deploy.verify.wording import headline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return faults.export_even(tmp_path_factory.mktemp("cli") / "models" / "net")


@pytest.fixture(scope="module")
def split(model: ModelBundle) -> EngineBundle:
    engines = model.path.parent.parent / "engines"
    return faults.build(model, engines / "net-split", split=True)


@pytest.fixture(scope="module")
def whole(model: ModelBundle, split: EngineBundle) -> EngineBundle:
    return faults.build(model, split.path.parent / "net-whole", split=False)


def test_both_engines_are_verified_and_the_report_lies_beside_them(
    cli: Cli, whole: EngineBundle, split: EngineBundle
) -> None:
    result = cli("verify", whole.path, "--with", split.path, "--samples", 4)
    assert result.returncode == 0, result.stdout + result.stderr
    for rung in ("training-f64", "fused-f64", "onnx-stages", "engine", "split-engine"):
        assert rung in result.stdout
    assert "rungs: 7 passed" in result.stdout
    assert f"{FLOAT32:.1e}" in result.stdout  # the tolerance is stated
    assert "UNTRAINED" in result.stdout
    found = decode((whole.path / "verify.json").read_bytes(), Verification)
    assert found.passed
    assert found.images == 4
    assert (whole.path / "verify.html").read_text().startswith("<!doctype html>")


def test_a_required_rung_that_cannot_be_verified_fails_and_json_is_json_still(
    cli: Cli, split: EngineBundle, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=pixels)
    arguments = ("verify", split.path, "--npz", tmp_path / "x.npz", "--json")
    required = ("--require", "split-engine", "--require", "engine")
    result = cli(*arguments, *required, "--output", tmp_path / "out")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = json.loads(result.stdout)
    verdicts = ["passed"] * 5 + ["not verified", "passed"]
    assert [rung["verdict"] for rung in found["rungs"]] == verdicts
    assert found["failures"] == [
        f"engine is required and not verified: {found['rungs'][5]['reason']}"
    ]
    assert found["images"] == 3
    assert result.stdout == (tmp_path / "out" / "verify.json").read_text()
    assert "climb" in result.stderr


def test_a_seeded_fault_fails_and_names_rung_and_block(
    cli: Cli, model: ModelBundle, whole: EngineBundle, tmp_path: Path
) -> None:
    shutil.copytree(model.path, tmp_path / "wrong")
    wrong = faults.zeroed_channel("stream1_block1")(tmp_path / "wrong")
    engine = faults.build(wrong, tmp_path / "engine", split=True)
    faults.claim(engine.path, model)
    result = cli("verify", engine.path, "--with", whole.path, "--samples", 4)
    assert result.returncode == 1
    assert "FAILED split-engine" in result.stdout
    assert "FAILED engine" not in result.stdout
    assert "they part company at stream1_block1 (skip block in stage stream1)" in result.stdout
    assert not json.loads((engine.path / "verify.json").read_text())["passed"]


@pytest.mark.slow
def test_a_plan_without_a_gpu_is_not_verified_and_never_passed(
    cli: Cli, model: ModelBundle, tmp_path: Path
) -> None:
    built = cli(
        "build-engine", model.path, "--backend", "tensorrt-rtx", "--output", tmp_path / "rtx"
    )
    assert built.returncode == 0, built.stderr
    # As on a machine without a GPU, wherever this runs.
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    result = cli("verify", tmp_path / "rtx", "--samples", 1, "--json", env=hidden)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rungs"][5]["verdict"] == "not verified"
    assert found["rungs"][5]["reason"]
    assert {probe["verdict"] for probe in found["probes"]} == {"not verified"}
    page = (tmp_path / "rtx" / "verify.html").read_text()
    assert ">NOT VERIFIED</span>" in page
    assert headline(decode(result.stdout, Verification)) == "NOT VERIFIED"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--require", "engines"), ("no rung 'engines'", "split-engine")),
        (("--images", "a", "--npz", "b"), ("two sources",)),
    ],
)
def test_wrong_usage_is_told_in_one_sentence(
    cli: Cli, split: EngineBundle, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    clean_error(cli("verify", split.path, *arguments), *parts)


def test_a_damaged_bundle_is_an_error(cli: Cli, split: EngineBundle, tmp_path: Path) -> None:
    shutil.copytree(split.path, tmp_path / "flipped")
    weights = tmp_path / "flipped" / "fusion.weights"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    clean_error(cli("verify", tmp_path / "flipped"), "fusion.weights is damaged")
    assert not (tmp_path / "flipped" / "verify.json").exists()
