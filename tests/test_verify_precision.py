"""Seeded faults of precision: each must fail, with a sentence that names the layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import verify_faults as faults
import verify_precision as precise

from parnet_deploy.bundle import CHECKPOINT, EngineBundle, ModelBundle, ModelManifest
from parnet_deploy.cli import main
from parnet_deploy.errors import ExportError, UsageError
from parnet_deploy.export import model as exporting
from parnet_deploy.export.gate import prove
from parnet_deploy.net import load_checkpoint
from parnet_deploy.quantise.images import open_images
from parnet_deploy.spec import Preprocessing
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.page import render
from parnet_deploy.verify.ranges import RANGES, READS, SAME
from parnet_deploy.verify.result import Verification
from parnet_deploy.verify.verifying import verify

CIFAR = Preprocessing(size=(64, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precise.write_pixels(tmp_path_factory.mktemp("pixels") / "pixels.npz")


@pytest.fixture(scope="module")
def int8(pixels: Path) -> ModelBundle:
    return precise.export_precision(pixels.parent / "int8", pixels, kept=("stem2",))


@pytest.fixture(scope="module")
def symmetric(pixels: Path) -> ModelBundle:
    return precise.export_precision(pixels.parent / "rtx", pixels, backend="tensorrt-rtx")


@pytest.fixture(scope="module")
def fp8(pixels: Path) -> ModelBundle:
    return precise.export_precision(pixels.parent / "fp8", pixels, "fp8", "tensorrt-rtx")


@pytest.fixture(scope="module")
def bf16(pixels: Path) -> ModelBundle:
    return precise.export_precision(pixels.parent / "bf16", pixels, "bf16", "openvino")


@pytest.fixture(scope="module")
def fp16(pixels: Path) -> ModelBundle:
    return precise.export_precision(pixels.parent / "fp16", pixels, "fp16")


@pytest.fixture(scope="module")
def engine(int8: ModelBundle) -> EngineBundle:
    return faults.build(int8, int8.path.parent / "int8-engine", split=True)


def checked(path: Path, pixels: Path, *, other: bool = False) -> Verification:
    if other:
        return verify(path, VerifyOptions(samples=4, npz=pixels))
    return verify(path, VerifyOptions(samples=4, calibrate=str(pixels)))


def failed(found: Verification, *parts: str) -> None:
    """It failed, and one sentence says all of these."""
    assert not found.passed
    assert any(all(part in text for part in parts) for text in found.failures), found.failures


def test_a_good_quantised_bundle_and_its_engine_pass(
    int8: ModelBundle, engine: EngineBundle, pixels: Path
) -> None:
    found = checked(engine.path, pixels)
    assert found.passed, found.failures
    assert found.precision == "int8"
    assert "int8" in found.allowed
    assert {check.verdict for check in found.checks} == {"passed"}
    rows = {row.block: row for row in found.types}
    built = {"onnx-whole": "int8", "onnx-stages": "int8", "split-engine": "int8"}
    assert rows["stem1"].built == built
    assert set(rows["stem2"].built.values()) == {"fp32"}, "kept"
    last = found.rungs[-1]
    assert last.alone
    assert max(error.steps or 0.0 for error in last.alone) < 0.5
    assert last.first is not None
    assert last.first.agreement is not None
    assert last.first.agreement.images == 4


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_what_onnx_runtime_has_no_kernels_for_is_emulated(
    precision: str, pixels: Path, request: pytest.FixtureRequest
) -> None:
    model: ModelBundle = request.getfixturevalue(precision)
    found = verify(model.path, VerifyOptions(samples=4, npz=pixels))
    assert found.passed, found.failures
    whole = found.rungs[3]
    assert "emulated" in whole.what
    assert found.rungs[4].before is not None
    assert found.rungs[4].before.comparison.max_rel == 0.0, "stages round where the whole does"
    assert {row.built["onnx-whole"] for row in found.types} >= {precision}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (precise.times_scale("merge1", 2), ("'merge1' has the scale", "instead of")),
        (precise.times_scale("images", 0.5), ("'images' has the scale",)),
        (precise.zero_point("stem4", 3), ("'stem4' has the zero point 3",)),
        (precise.kernel_scale("last", 2), ("the kernel of last", "scale")),
        (precise.float_kernel("stem3"), ("stem3 computes in", "int8 was asked for")),
    ],
    ids=["scale", "input-scale", "zero-point", "kernel-scale", "not-quantised"],
)
def test_graphs_that_are_not_what_the_manifest_says(
    change: precise.Change,
    parts: tuple[str, ...],
    int8: ModelBundle,
    pixels: Path,
    tmp_path: Path,
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, change)
    faults.reseal_model(path)
    failed(checked(path, pixels), "onnx-whole", *parts)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("stem3", "stem4, stream2_block1 compute in fp32 in"),
        ("merge2.join", "merge2 computes in"),
        ("stem4.conv", "'stem4.conv' is not quantised in"),
        ("images", "stem1 computes in"),
    ],
)
def test_a_pair_that_is_missing(
    tensor: str, layer: str, int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, precise.without_pair(tensor))
    faults.reseal_model(path)
    found = checked(path, pixels)
    failed(found, "onnx-whole", layer)
    failed(found, "onnx-stages", layer)
    failed(found, f"'{tensor}' is not quantised in")


def test_a_pair_that_is_missing_and_that_the_manifest_does_not_know_of_either(
    int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, precise.without_pair("stem4.conv"))
    precise.change_quantisation(path, precise.without_quantiser("stem4.conv"))
    failed(checked(path, pixels), "onnx-whole", "no quantiser of 'stem4.conv'")


def test_what_was_not_measured_at_the_export_is_not_said_to_be_near(
    int8: ModelBundle, pixels: Path
) -> None:
    how = int8.manifest.quantisation
    assert how is not None
    learned = replace(how, calibration=replace(how.calibration, method="qat"))
    manifest = replace(int8.manifest, quantisation=learned)
    network = load_checkpoint(int8.file(CHECKPOINT)).model.eval()
    proof = prove(int8.path, manifest, network)
    assert proof.network is None
    assert "was not measured" in str(proof)
    assert "of the network" not in str(proof)
    shown = open_images(str(pixels), manifest.preprocessing, limit=None).take([0, 1], "some")
    proof = prove(int8.path, manifest, network, [image[None] for image in shown.array()])
    assert proof.network is not None
    assert str(proof).startswith(f"whole graph within {proof.network:.1e} of the network, ")


@pytest.mark.parametrize(
    ("precision", "what"),
    [
        ("int8", "noughts"),
        ("int8", "constant"),
        ("fp8", "noughts"),
        ("fp8", "constant"),
        ("bf16", "constant"),
    ],
)
def test_a_network_that_looks_at_no_image(
    precision: str,
    what: str,
    request: pytest.FixtureRequest,
    pixels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its one answer, the mean of the right ones, may be within what a precision is allowed."""
    model: ModelBundle = request.getfixturevalue(precision)
    answer = precise.mean_answer(model, pixels) * (what == "constant")
    path = precise.copy_of(model, tmp_path / "model")
    precise.change_graphs(path, precise.blind(answer))
    faults.reseal_model(path)
    failed(verify(path, VerifyOptions(samples=8, npz=pixels)), "onnx-whole", "follow the images")
    if precision == "fp8":  # for which any image will do
        noise = verify(path, VerifyOptions(samples=8))
        failed(noise, "onnx-whole", "follow the images")
        assert noise.rungs[3].verdict == "failed"

    write = exporting.write_graphs

    def write_and_damage(work: Path, whole: object, manifest: ModelManifest) -> None:
        write(work, whole, manifest)
        if work.name != "fp32":  # where it is proven first
            precise.change_files(work, manifest, precise.blind(answer))

    monkeypatch.setattr(exporting, "write_graphs", write_and_damage)
    words = "the whole graph (differs from the network|does not follow the images)"
    with pytest.raises(ExportError, match=words):
        precise.export_precision(
            tmp_path / "net",
            pixels,
            precision,
            precise.BACKENDS[precision],  # type: ignore[arg-type]
        )


def test_a_zero_point_where_there_must_be_none(
    symmetric: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(symmetric, tmp_path / "model")
    precise.change_graphs(path, precise.zero_point("stem4", 3))
    precise.change_graphs(path, precise.zero_point("stem4.conv.weight", 1))
    faults.reseal_model(path)
    found = checked(path, pixels)
    failed(found, "zero points are 0", "'stem4' has a zero point other than 0")
    failed(found, "the kernel of stem4 has a zero point other than 0")


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("tensor", ["merge1", "merge2.join", "stem1.conv"])
def test_a_scale_off_by_two_in_graphs_and_manifest_is_found_on_the_calibration_images(
    factor: float, tensor: str, int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, precise.times_scale(tensor, factor))
    precise.change_quantisation(path, precise.times_scale_said(tensor, factor))
    failed(checked(path, pixels), RANGES, f"the range of '{tensor}'")


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scales_that_are_all_off_by_two_are_found_on_other_images(
    factor: float, int8: ModelBundle, tmp_path: Path
) -> None:
    others = precise.write_pixels(tmp_path / "others.npz", seed=1)
    assert verify(int8.path, VerifyOptions(npz=others)).passed
    path = precise.copy_of(int8, tmp_path / "model")
    assert int8.manifest.quantisation is not None
    for tensor in int8.manifest.quantisation.tensors:
        precise.change_graphs(path, precise.times_scale(tensor, factor))
        precise.change_quantisation(path, precise.times_scale_said(tensor, factor))
    found = verify(path, VerifyOptions(npz=others))
    failed(found, RANGES, "in the median of all tensors")
    failed(found, READS, "'images'")


def test_calibration_with_another_normalisation(pixels: Path, tmp_path: Path) -> None:
    model = precise.export_precision(tmp_path / "model", pixels, preprocessing=CIFAR)
    noise = verify(model.path, VerifyOptions(samples=2))
    failed(noise, READS, "another normalisation")
    failed(checked(model.path, pixels), SAME, "another normalisation")


def test_a_layer_that_is_kept_and_quantised_all_the_same(
    int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_quantisation(path, lambda found: replace(found, kept=("stem2", "stem3")))
    failed(checked(path, pixels), "stem3 computes in int8", "fp32 was asked for")


def test_a_stage_that_is_quantised_otherwise_than_the_whole_graph(
    int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    change = precise.times_scale("stream2_block1", 2)
    precise.change_graphs(path, change, "stages/stream2.onnx")
    faults.reseal_model(path)
    found = checked(path, pixels)
    failed(found, "onnx-stages", "'stream2_block1' is quantised otherwise in stages/stream2.onnx")
    assert found.rungs[3].verdict == "passed"
    assert found.rungs[4].verdict == "failed", "whole and stages round at the same places"


def test_fp32_sold_as_fp16(fp16: ModelBundle, pixels: Path, tmp_path: Path) -> None:
    assert verify(fp16.path, VerifyOptions(samples=4)).passed
    path = precise.copy_of(fp16, tmp_path / "model")
    precise.change_graphs(path, precise.float32_everywhere)
    faults.reseal_model(path)
    found = verify(path, VerifyOptions(samples=4))
    failed(found, "onnx-whole", "stem1, stem2, stem3, ", "compute in fp32 in model.onnx, and fp16")
    wrong = next(check for check in found.checks if check.verdict == "failed")
    assert "more (all are in verify.json)" in wrong.detail
    assert {row.block for row in found.types if row.built["onnx-whole"] == "fp32"} == {
        problem.partition(" ")[0] for problem in wrong.problems
    }, "the report has all"
    assert all(f"<li>{problem}</li>" in render(found) for problem in wrong.problems)
    first, *rest = found.failures
    assert first.startswith("onnx-whole and onnx-stages, each layer's type is what was asked for: ")
    assert all("asked for" not in text for text in rest), "it is said once"


def test_an_engine_that_was_asked_for_fp16_and_runs_fp32(fp16: ModelBundle, tmp_path: Path) -> None:
    """On a CPU that is said; a target that could have run it has failed."""
    engine = faults.build(fp16, tmp_path / "engine", split=False)
    found = verify(engine.path, VerifyOptions(samples=4))
    assert found.passed, found.failures
    said = [check.detail for check in found.checks if "computed in fp32" in check.detail]
    assert said
    assert "has no kernels in fp16" in said[0]
    stages = tuple(replace(stage, device="cuda:0") for stage in engine.manifest.stages)
    faults.reseal_engine(engine.path, stages=stages)
    failed(verify(engine.path, VerifyOptions(samples=4)), "could have computed in fp16")


def test_an_engine_that_was_asked_for_int8_and_was_built_in_fp32(
    int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    other = precise.export_precision(tmp_path / "other", pixels, kept=("stem2", "last"))
    wrong = faults.build(other, tmp_path / "engine", split=True)
    faults.claim(wrong.path, int8)
    options = VerifyOptions(samples=4, calibrate=str(pixels))
    failed(verify(wrong.path, options), "otherwise than its model: quantisation")
    faults.reseal_engine(wrong.path, quantisation=int8.manifest.quantisation)
    failed(verify(wrong.path, options), "last was built in fp32, and int8 was asked for")


def test_a_wrong_kernel_of_an_engine_is_found_block_by_block(
    int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    copy = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(copy, precise.kernel_scale("stream2_block2", 1.25))
    wrong = faults.build(faults.reseal_model(copy), tmp_path / "engine", split=True)
    faults.claim(wrong.path, int8)
    found = verify(wrong.path, VerifyOptions(samples=4, calibrate=str(pixels)))
    failed(found, "split-engine", "stream2_block2 in stage stream2 differs by", "steps")


def test_noise_does_not_judge_what_was_calibrated_on_images(
    int8: ModelBundle, pixels: Path
) -> None:
    found = verify(int8.path, VerifyOptions(samples=2))
    assert found.passed, found.failures
    assert [rung.verdict for rung in found.rungs[3:5]] == ["not verified"] * 2
    assert found.rungs[3].reason is not None
    assert "--calibrate" in found.rungs[3].reason


def test_only_what_was_calibrated_has_calibration_images(fp16: ModelBundle, pixels: Path) -> None:
    with pytest.raises(UsageError, match="was calibrated on nothing"):
        verify(fp16.path, VerifyOptions(calibrate=str(pixels)))


def test_other_images_than_those_of_the_manifest_are_named(
    int8: ModelBundle, tmp_path: Path
) -> None:
    others = precise.write_pixels(tmp_path / "others.npz", seed=1)
    failed(verify(int8.path, VerifyOptions(samples=2, calibrate=str(others))), SAME, "sha256")


def test_inspect_shows_how_a_bundle_is_quantised(
    int8: ModelBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["inspect", str(int8.path), "--layers"]) == 0
    shown = capsys.readouterr().out
    assert int8.manifest.quantisation is not None
    digest = int8.manifest.quantisation.calibration.sha256[:12]
    for text in ("int8", "minmax on 32 images", digest, "What layers compute in"):
        assert text in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith(("stem2 ", "kept "))]
    assert ["kept", "stem2"] in rows
    assert ["stem2", *["fp32"] * 4] in rows


def test_verify_says_on_the_command_line_what_failed(
    int8: ModelBundle, pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--calibrate", str(pixels), "--samples", "2")
    assert main.run(["verify", str(int8.path), "--output", str(tmp_path / "out"), *arguments]) == 0
    shown = capsys.readouterr().out
    for text in ("Allowed: int8", "images keep their class"):
        assert text in shown
    page = (tmp_path / "out" / "verify.html").read_text()
    assert "What every layer computes in" in page
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, precise.times_scale("merge1", 2))
    faults.reseal_model(path)
    assert main.run(["verify", str(path), *arguments]) == 1
    shown = capsys.readouterr().out
    assert "FAILED onnx-whole and onnx-stages, activations are quantised as" in shown
    assert shown.count("FAILED ") == 1, "what follows from it is no second fault"
    assert "'merge1' has the scale" in shown


def test_verify_without_images_does_not_end_as_if_it_had_judged(
    int8: ModelBundle, bf16: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output", str(tmp_path / "out"), "--samples", "1")
    assert main.run(["verify", str(int8.path), *out]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "NOT VERIFIED" in shown
    assert "give --images or --npz" in shown
    assert main.run(["verify", str(bf16.path), *out]) == 0, "noise judges it"
