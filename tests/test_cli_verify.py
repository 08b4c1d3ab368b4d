"""``parnet-deploy verify`` as a user calls it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import verify_faults as faults
from commands import call, call_and_close
from conftest import Cli, clean_error

from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.cli import verify as verify_command
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
    here: Cli, split: EngineBundle, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=pixels)
    arguments = ("verify", split.path, "--npz", tmp_path / "x.npz", "--json")
    required = ("--require", "split-engine", "--require", "engine")
    result = here(*arguments, *required, "--output", tmp_path / "out")
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
    here: Cli, model: ModelBundle, whole: EngineBundle, tmp_path: Path
) -> None:
    shutil.copytree(model.path, tmp_path / "wrong")
    wrong = faults.zeroed_channel("stream1_block1")(tmp_path / "wrong")
    engine = faults.build(wrong, tmp_path / "engine", split=True)
    faults.claim(engine.path, model)
    result = here("verify", engine.path, "--with", whole.path, "--samples", 4)
    assert result.returncode == 1
    assert "FAILED split-engine" in result.stdout
    assert "FAILED engine" not in result.stdout
    assert "they part company at stream1_block1 (skip block in stage stream1)" in result.stdout
    assert not json.loads((engine.path / "verify.json").read_text())["passed"]


@pytest.mark.slow
def test_a_plan_without_a_gpu_is_not_verified_and_never_passed(
    cli: Cli, here: Cli, model: ModelBundle, tmp_path: Path
) -> None:
    built = here(
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
    here: Cli, split: EngineBundle, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    clean_error(here("verify", split.path, *arguments), *parts)


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    here: Cli, split: EngineBundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = here("verify", split.path, "--output", tmp_path / "file" / "report")
    clean_error(result, f"{tmp_path / 'file'} is not a folder", "choose another --output")
    assert "climb" not in result.stderr


@pytest.fixture
def failing(split: EngineBundle, tmp_path: Path) -> tuple[object, ...]:
    """A verification that fails, cheaply: what it requires is not there."""
    few = ("--samples", 1, "--output", tmp_path / "out")
    return ("verify", split.path, "--require", "engine", *few)


def test_a_reader_that_has_gone_changes_neither_verdict_nor_report(
    failing: tuple[object, ...], tmp_path: Path
) -> None:
    assert call_and_close(*failing, stream="stdout") == 1
    assert not json.loads((tmp_path / "out" / "verify.json").read_text())["passed"]


def test_ctrl_c_while_a_failed_result_is_printed_is_an_interrupt(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[object, ...],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(
        verify_command, "print_table", lambda table: signal.raise_signal(signal.SIGINT)
    )
    result = call(capsys, *failing)
    assert result.status == 130
    assert result.err.endswith("interrupted; nothing was left half-written\n")
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_an_error(here: Cli, split: EngineBundle, tmp_path: Path) -> None:
    shutil.copytree(split.path, tmp_path / "flipped")
    weights = tmp_path / "flipped" / "fusion.weights"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    clean_error(here("verify", tmp_path / "flipped"), "fusion.weights is damaged")
    assert not (tmp_path / "flipped" / "verify.json").exists()
