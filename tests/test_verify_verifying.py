"""verify on whole bundles: every kind of model, and what cannot be verified here."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import verify_faults as faults
from conftest import export_tiny
from PIL import Image

from parnet_deploy.bundle import BatchRange, EngineBundle, ModelBundle
from parnet_deploy.errors import (
    BundleError,
    EngineError,
    ImageError,
    MissingDependencyError,
    RunnerError,
    TargetError,
    UsageError,
    VerificationError,
)
from parnet_deploy.net import load_checkpoint, save_checkpoint
from parnet_deploy.runtime import FunctionRunner, Runner, open_runner
from parnet_deploy.spec import layout
from parnet_deploy.verify import opening
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.result import Verification
from parnet_deploy.verify.rungs import HEAD
from parnet_deploy.verify.tolerances import ENGINE_RUNGS, FLOAT32, TF32_ENGINE, tolerances_of
from parnet_deploy.verify.verifying import verify


@pytest.fixture(scope="module")
def whole(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    return faults.build(tiny_bundle, tmp_path_factory.mktemp("engines") / "whole", split=False)


@pytest.fixture(scope="module")
def split(whole: EngineBundle, tiny_bundle: ModelBundle) -> EngineBundle:
    return faults.build(tiny_bundle, whole.path.parent / "split", split=True)


def by_rung(found: Verification) -> dict[str, str]:
    return {rung.name: rung.verdict for rung in found.rungs}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"stem": "share", "preprocess": True}, {}),
        ({"softmax": True, "batch": BatchRange(min=1, opt=3, max=4)}, {}),
        ({"softmax": True, "preprocess": True}, {"squeeze": False, "activation": "relu"}),
        (
            {"batch": BatchRange(min=2, opt=2, max=2)},
            {"stream_widths": (8,), "stream_blocks": (2,), "stem_strides": (2, 2)},
        ),
        ({}, {"last": "pointwise", "last_stride": 1}),
    ],
    ids=["shared-stem-uint8", "softmax-dynamic", "no-squeeze-relu", "one-stream", "pointwise"],
)
def test_every_kind_of_model_is_verified(
    options: dict[str, object], changes: dict[str, object], tmp_path: Path
) -> None:
    model = export_tiny(tmp_path / "model", changes=changes, **options)  # type: ignore[arg-type]
    engine = faults.build(model, tmp_path / "whole", split=False)
    sibling = faults.build(model, tmp_path / "split", split=True)
    found = verify(engine.path, VerifyOptions(samples=4, sibling=sibling.path))
    assert found.passed, found.failures
    assert set(by_rung(found).values()) == {"passed"}
    assert {probe.rung for probe in found.probes} == {"engine", "split-engine"}
    everything = {block.name for block in layout(found.spec)}
    for rung in found.rungs[1:]:
        assert rung.first is not None
        seen = {error.block for error in rung.first.blocks}
        # Optimised graphs keep some values under other names; all others show everything.
        assert HEAD in seen if rung.name in ENGINE_RUNGS else seen == everything


def test_a_fault_in_an_engine_that_hides_blocks_names_all_that_may_be_wrong(
    tmp_path: Path,
) -> None:
    changes = {"squeeze": False, "activation": "relu"}
    model = export_tiny(tmp_path / "model", changes=changes)
    faults.copy_model(model, tmp_path / "wrong")
    wrong = faults.zeroed_channel("stem3")(tmp_path / "wrong")
    engine = faults.build(wrong, tmp_path / "engine", split=True)
    faults.claim(engine.path, model)
    rung = verify(engine.path, VerifyOptions(samples=8)).rungs[6]
    assert rung.verdict == "failed"
    assert rung.parted_at is not None
    assert "cannot be seen" in rung.parted_at
    assert "stem3" in rung.parted_at


def test_probabilities_are_compared_by_their_logarithms_too(tmp_path: Path) -> None:
    """A sure network's probabilities hide a wrong logit; their logarithms do not."""
    model = export_tiny(tmp_path / "model", softmax=True)
    engine = faults.build(model, tmp_path / "engine", split=False)

    def opener(bundle: EngineBundle) -> Runner:
        honest = open_runner(bundle)

        def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            values = honest.run(feeds)["probabilities"].copy()
            rows = np.arange(len(values))
            values[rows, values.argmin(1)] *= np.float32(2)  # tiny either way
            return {"probabilities": values}

        return FunctionRunner(run, inputs=honest.inputs, outputs=honest.outputs)  # type: ignore[arg-type]

    found = verify(engine.path, VerifyOptions(samples=8), opener=opener)
    rung = found.rungs[5]
    assert rung.verdict == "failed"
    assert rung.first is not None
    outputs = {output.name: output for output in rung.first.comparison.outputs}
    assert set(outputs) == {"log-probabilities", "probabilities"}
    assert not outputs["log-probabilities"].passed


def test_a_model_bundle_is_climbed_as_far_as_its_stages(tiny_bundle: ModelBundle) -> None:
    found = verify(tiny_bundle.path, VerifyOptions(samples=2))
    assert found.passed
    assert list(by_rung(found).values()) == ["passed"] * 5 + ["not verified"] * 2
    assert found.rungs[5].reason == "no whole engine was given"
    assert {probe.rung for probe in found.probes} == {"onnx-whole"}
    assert any("UNTRAINED" in note for note in found.notes)


def test_a_sibling_is_told_of_and_used_only_when_named(
    whole: EngineBundle, split: EngineBundle
) -> None:
    alone = verify(split.path, VerifyOptions(samples=2))
    assert alone.passed
    assert by_rung(alone)["engine"] == "not verified"
    assert alone.rungs[5].reason == (
        f"no whole engine was given; there is one: --with {whole.path}"
    )
    both = verify(split.path, VerifyOptions(samples=2, sibling=whole.path))
    assert by_rung(both)["engine"] == "passed"
    assert both.rungs[6].before is not None
    assert both.rungs[6].before.rung == "engine"


def test_two_engines_of_one_kind_are_refused(whole: EngineBundle, tiny_bundle: ModelBundle) -> None:
    with pytest.raises(UsageError, match="both whole engines"):
        verify(whole.path, VerifyOptions(sibling=whole.path))
    with pytest.raises(UsageError, match="is a model bundle itself"):
        verify(tiny_bundle.path, VerifyOptions(model=tiny_bundle.path))
    with pytest.raises(BundleError, match="engine"):
        verify(whole.path, VerifyOptions(sibling=tiny_bundle.path))


@pytest.mark.parametrize(
    "error", [TargetError("no GPU here"), MissingDependencyError("no GPU here")]
)
def test_an_engine_that_cannot_run_here_is_not_verified(
    error: Exception, whole: EngineBundle
) -> None:
    def opener(bundle: EngineBundle) -> Runner:
        raise error

    found = verify(whole.path, VerifyOptions(samples=2), opener=opener)
    assert found.passed
    assert by_rung(found)["engine"] == "not verified"
    assert found.rungs[5].reason == "no GPU here"
    assert {probe.verdict for probe in found.probes} == {"not verified"}

    options = VerifyOptions(samples=2, required=("onnx-whole", "engine"))
    required = verify(whole.path, options, opener=opener)
    assert not required.passed
    assert required.failures == ("engine is required and not verified: no GPU here",)


def test_an_engine_that_is_for_this_machine_and_does_not_load_has_failed(
    whole: EngineBundle, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    """What is wrong is the engine, not the machine: that must not pass as "not verified"."""
    shutil.copytree(whole.path, tmp_path / "engine")
    damaged = tmp_path / "engine" / "whole.onnx"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    faults.reseal_engine(tmp_path / "engine")
    found = verify(tmp_path / "engine", VerifyOptions(samples=2, model=tiny_bundle.path))
    assert not found.passed
    assert by_rung(found)["engine"] == "failed"
    assert found.rungs[5].reason is not None
    assert "does not open" in found.rungs[5].reason
    assert "cannot load" in found.rungs[5].reason


def test_an_engine_that_opens_and_does_not_run_has_failed(whole: EngineBundle) -> None:
    def breaks(feeds: object) -> dict[str, np.ndarray]:
        raise RunnerError("the device is gone")

    def opener(bundle: EngineBundle) -> Runner:
        manifest = bundle.manifest
        return FunctionRunner(breaks, inputs=manifest.inputs, outputs=manifest.outputs)

    found = verify(whole.path, VerifyOptions(samples=2), opener=opener)
    assert not found.passed
    assert found.rungs[5].reason == "it does not run: the device is gone"
    assert {probe.verdict for probe in found.probes} == {"failed", "not applicable"}


def test_an_engine_whose_inside_cannot_be_seen_says_so(whole: EngineBundle) -> None:
    def opener(bundle: EngineBundle) -> Runner:
        manifest = bundle.manifest
        (output,) = manifest.outputs

        def run(feeds: object) -> dict[str, np.ndarray]:
            return {output.name: np.ones(output.concrete(1), np.float32)}

        return FunctionRunner(run, inputs=manifest.inputs, outputs=manifest.outputs)

    sealed = whole.path.parent / "plan"
    shutil.copytree(whole.path, sealed)
    faults.reseal_engine(sealed, backend="tensorrt-rtx")
    found = verify(sealed, VerifyOptions(samples=2), opener=opener)
    assert found.rungs[5].verdict == "failed"
    assert found.rungs[5].parted_at is not None
    assert found.rungs[5].parted_at.startswith("head (head block), or a block before it")
    failed = {probe.name for probe in found.probes if probe.verdict == "failed"}
    assert failed == {"different images, different answers"}


def test_the_model_of_an_engine_is_looked_for_where_it_says_or_where_it_is_told(
    whole: EngineBundle, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    alone = tmp_path / "far" / "away" / "alone"
    shutil.copytree(whole.path, alone)
    with pytest.raises(VerificationError, match="say where it is with --model"):
        verify(alone, VerifyOptions(samples=2))
    found = verify(alone, VerifyOptions(samples=2, model=tiny_bundle.path))
    assert found.passed
    assert found.model == str(tiny_bundle.path)


def test_a_damaged_model_of_a_good_engine_is_an_error(
    whole: EngineBundle, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    faults.copy_model(tiny_bundle, tmp_path / "model")
    (tmp_path / "model" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"'model\.onnx' is missing"):
        verify(whole.path, VerifyOptions(samples=2, model=tmp_path / "model"))


def test_a_checkpoint_of_another_network_is_an_error(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    faults.copy_model(tiny_bundle, tmp_path / "model")
    path = tmp_path / "model" / "checkpoint.safetensors"
    network = load_checkpoint(path).model
    network.spec = replace(network.spec, bn_eps=1e-3)
    save_checkpoint(network, path)
    faults.reseal_model(tmp_path / "model")
    with pytest.raises(VerificationError, match="another network than its manifest"):
        verify(tmp_path / "model", VerifyOptions(samples=2))


def test_images_of_a_folder_are_fed(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    found = verify(tiny_bundle.path, VerifyOptions(images=tmp_path))
    assert found.passed
    assert found.images == 3
    assert found.inputs == f"3 of 3 images in {tmp_path}"
    with pytest.raises(ImageError, match="no image"):
        verify(tiny_bundle.path, VerifyOptions(images=tiny_bundle.path / "stages"))


def test_two_sources_of_images_are_refused() -> None:
    with pytest.raises(UsageError, match="two sources"):
        VerifyOptions(images=Path("a"), npz=Path("b"))
    with pytest.raises(UsageError, match="at least one"):
        VerifyOptions(samples=0)


def test_a_tolerance_that_is_given_is_the_one_that_counts(tiny_bundle: ModelBundle) -> None:
    found = verify(tiny_bundle.path, VerifyOptions(samples=2, tolerances={"onnx-whole": 1e-9}))
    assert by_rung(found)["onnx-whole"] == "failed"
    assert found.rungs[3].tolerance == 1e-9
    assert found.rungs[4].tolerance == FLOAT32


def test_an_engine_that_may_use_tf32_is_allowed_more(
    tiny_bundle: ModelBundle, whole: EngineBundle
) -> None:
    model = tiny_bundle.manifest
    manifest = replace(whole.manifest, options={"builder_flags": ["TF32"]})
    assert tolerances_of(model, {"engine": manifest}, {})["engine"] == TF32_ENGINE
    assert tolerances_of(model, {"engine": whole.manifest}, {})["engine"] == FLOAT32
    assert tolerances_of(model, {"engine": manifest}, {"engine": 1e-3})["engine"] == 1e-3


def test_nothing_is_left_behind(
    tiny_bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tiny_bundle.path.rglob("*"))
    verify(tiny_bundle.path, VerifyOptions(samples=1))
    assert list(tmp_path.iterdir()) == []
    assert sorted(tiny_bundle.path.rglob("*")) == before


def test_an_engine_whose_copy_does_not_open_is_verified_all_the_same(
    split: EngineBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = opening.OnnxRuntimeRunner

    def refuses_engines(path: Path, **options: Any) -> Runner:
        if "split-engine" in path.parts:  # the copies of that rung; the engine is opened elsewhere
            raise EngineError("an operator is missing")
        return honest(path, **options)

    monkeypatch.setattr(opening, "OnnxRuntimeRunner", refuses_engines)
    found = verify(split.path, VerifyOptions(samples=2))
    assert found.passed
    last = found.rungs[6].first
    assert last is not None
    assert {error.block for error in last.blocks} == {  # what crosses the cuts is still seen
        "merge1",
        "stream2_block2",
        "stream3_block2",
        "head",
    }
