"""Seeded faults: each must make the ladder fail at the right rung and at the right block."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import verify_faults as faults

from parnet_deploy.bundle import CHECKPOINT, WEIGHTS, EngineBundle, ModelBundle
from parnet_deploy.errors import BundleError
from parnet_deploy.net import DeployParNet, ParNet, fuse
from parnet_deploy.spec import DeployForm
from parnet_deploy.verify import verifying
from parnet_deploy.verify.built import CONSTANTS
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.result import RungResult, Verification
from parnet_deploy.verify.verifying import verify

Plant = Callable[[Path], ModelBundle]

QUICK = VerifyOptions(samples=8)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return faults.export_even(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """The same architecture, trained otherwise."""
    return faults.export_even(tmp_path_factory.mktemp("models") / "good", seed=1)


@pytest.fixture(scope="module")
def split(good: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    return faults.build(good, tmp_path_factory.mktemp("engines") / "split", split=True)


def first_failed(found: Verification) -> RungResult:
    """The rung that broke away; with one, nothing passes as a whole."""
    assert not found.passed
    return next(rung for rung in found.rungs if rung.verdict == "failed")


def passed(found: Verification) -> list[str]:
    return [rung.name for rung in found.rungs if rung.verdict == "passed"]


def test_without_a_fault_everything_passes(good: ModelBundle, split: EngineBundle) -> None:
    found = verify(split.path, QUICK)
    assert found.passed, found.failures
    assert passed(found) == [
        "training-f64",
        "fused-f64",
        "fused-f32",
        "onnx-whole",
        "onnx-stages",
        "split-engine",
    ]


@pytest.mark.parametrize(
    ("plant", "block"),
    [
        (faults.wrong_eps, "stem1 (plain"),
        (faults.swapped_streams, "stream2_block1 (skip"),
        (faults.other_checkpoint, "stem1 (plain"),
        (faults.zeroed_channel("stem3"), "stem3 (plain"),
        (faults.zeroed_channel("stream1_block2"), "stream1_block2 (skip"),
        (faults.zeroed_channel("merge3"), "merge3 (fusion"),
        (faults.zeroed_channel("last"), "last (plain"),
        (faults.non_finite(float("nan")), "stream2_block2 (skip"),
        (faults.non_finite(float("inf")), "stream2_block2 (skip"),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)).split(".")[0],
)
def test_a_fault_in_the_graphs_is_found_at_the_whole_graph(
    plant: Plant, block: str, good: ModelBundle, tmp_path: Path
) -> None:
    faults.copy_model(good, tmp_path / "model")
    plant(tmp_path / "model")
    found = verify(tmp_path / "model", QUICK)
    rung = first_failed(found)
    assert rung.name == "onnx-whole", found.failures
    assert rung.parted_at is not None
    assert rung.parted_at.startswith(block)
    assert passed(found) == ["training-f64", "fused-f64", "fused-f32"]
    # The stages share the weights: they agree with the whole graph, and are as wrong as it is.
    assert any(text.startswith("onnx-stages: ") for text in found.failures)
    assert CONSTANTS in found.failures[0], "which one it is comes before what it brings about"


def test_swapped_streams_are_two_independent_faults(good: ModelBundle, tmp_path: Path) -> None:
    faults.copy_model(good, tmp_path / "model")
    faults.swapped_streams(tmp_path / "model")
    parted_at = first_failed(verify(tmp_path / "model", QUICK)).parted_at
    assert parted_at is not None
    assert "independently of it at stream3_block1 (skip block)" in parted_at


def test_a_non_finite_weight_is_called_so(good: ModelBundle, tmp_path: Path) -> None:
    faults.copy_model(good, tmp_path / "model")
    faults.non_finite(float("nan"))(tmp_path / "model")
    rung = first_failed(verify(tmp_path / "model", QUICK))
    assert rung.reason is not None
    assert "not finite: 56 of 56 elements" in rung.reason


def test_a_non_finite_checkpoint_fails_at_the_first_rung(good: ModelBundle, tmp_path: Path) -> None:
    faults.copy_model(good, tmp_path / "model")
    faults.non_finite_checkpoint(tmp_path / "model")
    found = verify(tmp_path / "model", QUICK)
    rung = first_failed(found)
    assert rung.name == "training-f64"
    assert rung.parted_at is not None
    assert rung.parted_at.startswith("stream3_block1 (skip block): its output is not finite")
    assert passed(found) == []


def test_a_wrong_eps_in_the_fold_itself_fails_at_fused_f64(
    good: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_fuse(model: ParNet, form: DeployForm) -> DeployParNet:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1.01e-5
        fused = fuse(model, form)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-5
        return fused

    monkeypatch.setattr(verifying, "fuse", wrong_fuse)
    rung = first_failed(verify(good.path, QUICK))
    assert rung.name == "fused-f64"
    assert rung.parted_at is not None
    assert rung.parted_at.startswith("stem1 (plain block)")


def test_one_rounding_in_the_fold_fails_at_fused_f64(
    good: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest fault there is: one block's biases go through float32."""

    def rounding_fuse(model: ParNet, form: DeployForm) -> DeployParNet:
        fused = fuse(model, form)
        bias = fused.blocks["merge1"].conv.bias
        bias.data = bias.data.float().to(bias.dtype)
        return fused

    monkeypatch.setattr(verifying, "fuse", rounding_fuse)
    rung = first_failed(verify(good.path, QUICK))
    assert rung.name == "fused-f64"
    assert rung.parted_at is not None
    assert rung.parted_at.startswith("merge1 (plain block)")


def test_a_stage_graph_of_an_older_bundle_fails_at_the_stages(
    good: ModelBundle, older: ModelBundle, tmp_path: Path
) -> None:
    faults.copy_model(good, tmp_path / "model")
    faults.old_stage("stream2", older)(tmp_path / "model")
    found = verify(tmp_path / "model", QUICK)
    rung = first_failed(found)
    assert rung.name == "onnx-stages"
    assert rung.parted_at is not None
    assert rung.parted_at.startswith("stem1 (plain block in stage stream2)")
    assert passed(found)[-1] == "onnx-whole"


def test_a_stage_of_an_older_engine_fails_at_the_split_engine(
    good: ModelBundle, older: ModelBundle, split: EngineBundle, tmp_path: Path
) -> None:
    stale = faults.build(older, tmp_path / "stale", split=True)
    shutil.copytree(split.path, tmp_path / "mixed")
    mixed = faults.claim(tmp_path / "mixed", good)
    faults.old_engine_stage(mixed, stale, "fusion")
    found = verify(mixed.path, QUICK)
    rung = first_failed(found)
    assert rung.name == "split-engine"
    assert rung.parted_at is not None
    assert rung.parted_at.startswith("merge2 (fusion block in stage fusion)")
    assert passed(found)[-1] == "onnx-stages"


@pytest.mark.parametrize(
    ("plant", "block"),
    [
        (faults.zeroed_channel("stream3_block2"), "stream3_block2 (skip"),
        (faults.swapped_streams, "stream2_block1 (skip"),
        (faults.non_finite(float("nan")), "stream2_block2 (skip"),
    ],
    ids=["zeroed-channel", "swapped-streams", "non-finite"],
)
def test_a_fault_in_the_whole_engine_is_found_there_and_not_in_the_split_one(
    plant: Plant, block: str, good: ModelBundle, split: EngineBundle, tmp_path: Path
) -> None:
    faults.copy_model(good, tmp_path / "model")
    wrong = plant(tmp_path / "model")
    engine = faults.build(wrong, tmp_path / "engine", split=False)
    faults.claim(engine.path, good)
    found = verify(engine.path, VerifyOptions(samples=8, sibling=split.path))
    rung = first_failed(found)
    assert rung.name == "engine"
    assert rung.parted_at is not None
    assert rung.parted_at.startswith(block)
    assert passed(found)[-2:] == ["onnx-stages", "split-engine"]


def test_an_engine_of_an_older_bundle_fails_before_any_number_is_compared(
    good: ModelBundle, older: ModelBundle, tmp_path: Path
) -> None:
    engine = faults.build(older, tmp_path / "engine", split=True)
    found = verify(engine.path, VerifyOptions(samples=8, model=good.path))
    rung = first_failed(found)
    assert rung.name == "split-engine"
    assert rung.first is None
    assert rung.reason is not None
    assert "built from another bundle" in rung.reason
    assert "parnet-deploy build-engine" in rung.reason
    assert all(probe.verdict == "not verified" for probe in found.probes)


def test_an_engine_that_says_otherwise_than_its_model_fails(
    good: ModelBundle, tmp_path: Path
) -> None:
    """The ladder is fed by the model's word; `predict` would prepare images by the engine's."""
    engine = faults.build(good, tmp_path / "engine", split=False)
    other = replace(engine.manifest.preprocessing, mean=(0.0, 0.0, 0.0))
    lines = list(reversed(engine.labels))
    (engine.path / "labels.txt").write_text("\n".join(lines) + "\n")
    faults.reseal_engine(engine.path, preprocessing=other, softmax=True)
    found = verify(engine.path, replace(QUICK, model=good.path))
    rung = first_failed(found)
    assert (rung.name, rung.first) == ("engine", None)
    assert rung.reason is not None
    assert "otherwise than its model: softmax, preprocessing, labels; build" in rung.reason
    assert not found.passed


@pytest.mark.parametrize("name", [WEIGHTS, CHECKPOINT, "stages/fusion.onnx", "labels.txt"])
def test_what_was_changed_without_sealing_is_found_by_its_hash(
    name: str, good: ModelBundle, tmp_path: Path
) -> None:
    faults.copy_model(good, tmp_path / "model")
    path = tmp_path / "model" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        verify(tmp_path / "model", QUICK)


def test_a_stage_exchanged_without_sealing_is_found_by_its_hash(
    good: ModelBundle, older: ModelBundle, split: EngineBundle, tmp_path: Path
) -> None:
    stale = faults.build(older, tmp_path / "stale", split=True)
    shutil.copytree(split.path, tmp_path / "mixed")
    faults.claim(tmp_path / "mixed", good)
    shutil.copyfile(stale.path / "stream2.onnx", tmp_path / "mixed" / "stream2.onnx")
    shutil.copyfile(stale.path / "stream2.weights", tmp_path / "mixed" / "stream2.weights")
    with pytest.raises(BundleError, match=r"stream2\.\w+ is damaged"):
        verify(tmp_path / "mixed", QUICK)
