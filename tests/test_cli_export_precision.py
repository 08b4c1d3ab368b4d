"""``parnet-deploy export --precision`` as a user calls it: what it writes, says and refuses."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import call, one_sentence
from PIL import Image

from parnet_deploy.bundle import MODEL_GRAPH, open_model
from parnet_deploy.cli import quantising
from parnet_deploy.errors import OutputExistsError
from parnet_deploy.lowering import layer_types
from parnet_deploy.quantise import names
from parnet_deploy.quantise.images import open_images

TINY = (
    *("--variant", "s", "--widths", "8,16,24,32", "--blocks", "1,1,2"),
    *("--image-size", "64", "--classes", "7"),
)
INT8 = ("--precision", "int8", "--calibrate", "images")
OUTPUT = Path("models") / "parnet-s"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images() -> Path:
    """A folder with a few images of a gradient and noise."""
    folder = Path("images")
    folder.mkdir()
    ramp = np.linspace(0, 255, 64)[:, None, None] * np.ones((1, 64, 3))
    for number in range(6):
        noise = np.random.default_rng(number).normal(0, 40, ramp.shape)
        pixels = np.clip(np.rot90(ramp, number) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_without_images_it_is_float(capsys: Capture) -> None:
    for precision in ("fp16", "bf16"):
        result = call(capsys, "export", *TINY, "--precision", precision, "--force")
        assert result.status == 0, result.err
        types = layer_types(onnx.load(OUTPUT / MODEL_GRAPH))
        assert {types[block] for block in types if block != "head"} == {precision}


@pytest.mark.parametrize(
    ("precision", "target", "scheme"),
    [
        ("int8", "tensorrt", "int8"),
        ("int8", "onnxruntime", "uint8"),
        ("fp8", "tensorrt", "float8_e4m3fn"),
    ],
)
def test_with_images_it_is_quantised(
    capsys: Capture, images: Path, precision: str, target: str, scheme: str
) -> None:
    result = call(
        capsys, "export", *TINY, "--precision", precision, "--for", target, "--calibrate", images
    )
    assert result.status == 0, result.err
    assert "calibrated (mse) on 6 images" in result.out
    assert "as exported" in result.out
    quantisation = open_model(OUTPUT).manifest.quantisation
    assert quantisation is not None
    assert quantisation.scheme.activation == scheme
    assert quantisation.calibration.images == 6
    assert len(quantisation.calibration.sha256) == 64
    assert str(images.resolve().parent) not in (OUTPUT / "manifest.json").read_text()
    types = layer_types(onnx.load(OUTPUT / MODEL_GRAPH))
    assert {types[block] for block in types if block != "head"} == {precision}


def test_layers_are_kept_and_a_report_says_why(capsys: Capture, images: Path) -> None:
    asked = ("--keep", "stem1", "--auto-keep", 0, "--correct-bias", "--quantisation-report", "why")
    result = call(capsys, "export", *TINY, "--precision", "int8", "--calibrate", images, *asked)
    assert result.status == 0, result.err
    quantisation = open_model(OUTPUT).manifest.quantisation
    assert quantisation is not None
    assert "stem1" in quantisation.kept
    types = layer_types(onnx.load(OUTPUT / MODEL_GRAPH))
    halves = {block for block, kind in types.items() if kind == "fp16"}
    assert halves - {"head"} == set(quantisation.kept)
    report = json.loads((Path("why") / "quantisation.json").read_text())
    assert report["images"] == 6
    assert {layer["block"] for layer in report["layers"] if layer["kept"]} == set(quantisation.kept)
    assert "<svg" in (Path("why") / "quantisation.html").read_text()
    assert "kept in fp16: " in result.out


def test_the_same_images_give_the_same_bundle(capsys: Capture, images: Path) -> None:
    written = []
    for _ in range(2):
        arguments = ("--precision", "int8", "--calibrate", images, "--force")
        assert call(capsys, "export", *TINY, *arguments).status == 0
        written.append((OUTPUT / MODEL_GRAPH).read_bytes())
    assert written[0] == written[1]


# What is refused, before any work is done


def npz(**arrays: np.ndarray) -> Path:
    path = Path("given.npz")
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def black() -> Path:
    folder = Path("black")
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    return folder


def empty() -> Path:
    folder = Path("empty")
    folder.mkdir()
    return folder


def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (4, 3, 64, 64)).astype(np.float32).clip(-1.7, 2.2)


def nan() -> Path:
    values = noise()
    values[1, 2, 3, 4] = np.nan
    return npz(images=values)


def unnormalised() -> Path:
    """As pixels, 0 to 255, which the network never reads."""
    return npz(images=noise() * 60 + 120)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, "empty"),
        (black, "black"),
        (nan, "given.npz"),
        (unnormalised, "given.npz"),
        (lambda: Path("nowhere"), "nowhere"),
    ],
)
def test_images_that_cannot_be_used(capsys: Capture, make: Callable[[], Path], words: str) -> None:
    given = make()
    result = call(capsys, "export", *TINY, "--precision", "int8", "--calibrate", given)
    one_sentence(result, 1, words)
    assert "fuse" not in result.err
    assert not OUTPUT.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--precision", "int8"), "--calibrate"),
        (("--precision", "fp8", "--for", "onnxruntime"), "onnxruntime does not compute in fp8"),
        (("--precision", "int8", "--for", "ncnn"), "ncnn does not compute in int8"),
        (("--precision", "fp16", "--calibrate", "images"), "leave out --calibrate"),
        (("--auto-keep", "1", "--keep", "stem1"), "leave out --auto-keep, --keep"),
        ((*INT8, "--auto-keep", "-1"), "0 to 100"),
        ((*INT8, "--percentile", "99"), "give --calibration-method percentile"),
        ((*INT8, "--keep", "stem9"), "'stem9'"),
        ((*INT8, "--calibration-images", "-1"), "-1"),
        (
            (
                "--precision",
                "int8",
                "--calibrate",
                "images",
                "--quantisation-report",
                "images/0.png",
            ),
            "--quantisation-report",
        ),
        (
            (*INT8, "--per-tensor", "--auto-keep", "1"),
            "--per-tensor",
        ),
    ],
)
def test_options_that_cannot_be(
    capsys: Capture, images: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = call(capsys, "export", *TINY, *arguments)
    one_sentence(result, 2, words)
    assert not OUTPUT.exists()


TAKEN = {
    "tensorrt": {"fp32", "fp16", "bf16", "int8", "fp8"},
    "tensorrt-rtx": {"fp32", "fp16", "bf16", "int8", "fp8"},
    "onnxruntime": {"fp32", "fp16", "int8"},
    "openvino": {"fp32", "fp16", "bf16", "int8"},
    "ncnn": {"fp32"},
}
"""What docs/precision.md says."""


@pytest.mark.parametrize("target", TAKEN)
def test_a_precision_that_the_target_does_not_run_is_refused_at_once(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Of every pair; the others go on to what is missing: a checkpoint."""
    monkeypatch.setattr("parnet_deploy.cli.export.need", lambda command: None)
    nowhere = ("--checkpoint", "nowhere.safetensors", "--for", target)
    for precision in ("fp32", "fp16", "bf16", "int8", "fp8"):
        result = call(capsys, "export", *nowhere, "--precision", precision)
        if precision in TAKEN[target]:
            assert "nowhere.safetensors" in result.err
            continue
        one_sentence(result, 2, f"{target} does not compute in {precision}", "--precision ")
        assert result.err.count("\n") == 1, "before any work"


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("nowhere", 1, "nowhere"),
        ("empty", 1, "empty"),
        ("imagefolder:nowhere", 1, "nowhere"),
        ("imagefolder:empty", 1, "empty"),
        ("broken.npz", 1, "broken.npz"),
        ("two.npz", 1, "it has a, b: save the array of images under the name 'images'"),
        ("digits:there", 2, "digits"),
        (None, 2, "give --calibrate"),
    ],
)
def test_images_are_looked_for_before_a_network_is_read(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, source: str | None, status: int, words: str
) -> None:
    """And what is missing and what is empty end alike: what is named cannot be used."""
    Path("empty").mkdir()
    Path("broken.npz").write_bytes(b"no zip")
    np.savez("two.npz", a=noise(), b=noise())
    monkeypatch.setattr(
        "parnet_deploy.cli.export._find_network", lambda *_, **__: pytest.fail("read")
    )
    named = ("--variant", "s") if source is None else ("--checkpoint", "never-read.safetensors")
    given = () if source is None else ("--calibrate", source)
    result = call(capsys, "export", *named, "--precision", "int8", *given)
    one_sentence(result, status, words)
    assert result.err.count("\n") == 1


def test_an_npz_s_only_array_is_read_and_named(capsys: Capture) -> None:
    given = np.random.default_rng(0).integers(0, 256, (17, 3, 64, 64), dtype=np.uint8)
    np.savez("photos.npz", pictures=given)
    result = call(capsys, "export", *TINY, "--precision", "int8", "--calibrate", "photos.npz")
    assert result.status == 0, result.err
    assert "17 images of the array 'pictures' of photos.npz" in result.out
    quantisation = open_model(OUTPUT).manifest.quantisation
    assert quantisation is not None
    assert "'pictures'" in quantisation.calibration.source


def test_the_next_command_is_for_the_target(capsys: Capture, images: Path) -> None:
    result = call(capsys, "export", *TINY, *INT8, "--for", "onnxruntime")
    line = result.out.splitlines()[-1]
    assert line.startswith("next: parnet-deploy build-engine")
    assert line.endswith(" --backend onnxruntime")
    built = call(capsys, *shlex.split(line.removeprefix("next: parnet-deploy ")))
    assert built.status == 0, built.err
    assert built.out.endswith("parnet-s-onnxruntime-cpu-split --images FOLDER\n")


@pytest.mark.parametrize(
    ("target", "backend"), [("tensorrt", "onnxruntime"), ("onnxruntime", "tensorrt-rtx")]
)
def test_graphs_that_are_quantised_for_another_backend_are_not_built(
    capsys: Capture, images: Path, target: str, backend: str
) -> None:
    """They would be computed in float32 between conversions, or not be read at all."""
    assert call(capsys, "export", *TINY, *INT8, "--for", target).status == 0
    result = call(capsys, "build-engine", OUTPUT, "--backend", backend, "--output", "engine")
    takers = {"tensorrt": "TensorRT and TensorRT RTX", "onnxruntime": "ONNX Runtime and OpenVINO"}
    one_sentence(
        result, 1, f"were quantised for {takers[target]}", f"--precision int8 --for {backend}"
    )
    assert not Path("engine").exists()


def test_images_that_are_far_too_dark_are_warned_of(capsys: Capture, images: Path) -> None:
    dark = Path("dark")
    dark.mkdir()
    for path in images.iterdir():
        with Image.open(path) as image:
            image.point(lambda value: value // 16).save(dark / path.name)
    result = call(capsys, "export", *TINY, "--precision", "int8", "--calibrate", dark)
    assert "0 to 15 of 255" in result.err
    assert any("of 255" in said for said in open_model(OUTPUT).manifest.warnings)
    assert "6 calibration images are few" in result.err


def test_arrays_that_were_normalised_otherwise_are_refused_unless_it_is_allowed(
    capsys: Capture,
) -> None:
    """The seeded fault: -1.4 to 1.4 might be pictures, and lacks half of what is read."""
    values = np.random.default_rng(0).uniform(-1.4, 1.4, (16, 3, 64, 64)).astype(np.float32)
    np.savez("half.npz", images=values)
    asked = ("export", *TINY, "--precision", "int8", "--calibrate", "half.npz")
    one_sentence(call(capsys, *asked), 1, "another normalisation", "--allow-doubtful")
    assert not OUTPUT.exists()
    result = call(capsys, *asked, "--allow-doubtful")
    assert result.status == 0, result.err
    assert "WARNING the range of 'images'" in result.err
    assert any("another" in said for said in open_model(OUTPUT).manifest.warnings)


@pytest.mark.parametrize(
    ("report", "given"),
    [
        (OUTPUT, ()),
        (OUTPUT / "why", ("--output", OUTPUT)),
        (OUTPUT / "why", ("--force",)),
        (Path("models") / "link" / "why", ()),
    ],
)
def test_a_report_in_the_bundle_s_own_folder_is_refused_before_any_work(
    capsys: Capture, images: Path, report: Path, given: tuple[object, ...]
) -> None:
    Path("models").mkdir()
    Path("models", "link").symlink_to(OUTPUT.absolute())
    if "--force" in given:
        OUTPUT.mkdir()
        (OUTPUT / "manifest.json").write_text("{}")  # which makes it one that may be replaced
    result = call(capsys, "export", *TINY, *INT8, "--quantisation-report", report, *given)
    one_sentence(result, 2, "--quantisation-report", "choose a folder beside it")
    assert "fuse" not in result.err
    assert OUTPUT.exists() == ("--force" in given)


def test_what_the_command_line_knows_of_quantising_stands_once() -> None:
    """And is known without what quantises, or the command line would start late."""
    asked = inspect.signature(open_images).parameters["limit"].default
    assert asked == quantising.Options().calibration_images == names.LIMIT
    code = (
        "import sys, parnet_deploy.cli.quantising as cli\n"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'parnet_deploy.quantise.ranges'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_report_is_not_replaced_unasked(capsys: Capture, images: Path) -> None:
    asked = (*INT8, "--quantisation-report", "why")
    assert call(capsys, "export", *TINY, *asked).status == 0
    one_sentence(call(capsys, "export", *TINY, *asked, "--output", "other"), 1, "why", "--force")
    assert not Path("other").exists()


def test_a_report_of_ours_is_replaced_and_no_other(capsys: Capture, images: Path) -> None:
    asked = (*INT8, "--quantisation-report", "why", "--force")
    assert call(capsys, "export", *TINY, *asked).status == 0
    report = Path("why", names.JSON_FILE)
    assert json.loads(report.read_text())["format"] == names.FORMAT
    result = call(capsys, "export", *TINY, *asked, "--keep", "stem1")
    assert result.status == 0, result.err
    assert json.loads(report.read_text())["quantisation"]["kept"] == ["stem1"]
    for name, foreign in ((names.JSON_FILE, "{}"), (names.PAGE_FILE, "<p>my diary</p>")):
        kept = Path("why", name).read_bytes()
        Path("why", name).write_text(foreign)
        one_sentence(call(capsys, "export", *TINY, *asked), 1, name, "--quantisation-report")
        assert Path("why", name).read_text() == foreign
        Path("why", name).write_bytes(kept)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"format": "another"}', b"[" * 99_999])
def test_what_is_no_report_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / names.JSON_FILE).write_bytes(content)
    with pytest.raises(OutputExistsError, match=r"earlier version .*; delete it, or choose"):
        names.refuse_report(tmp_path, force=True)
    (tmp_path / names.JSON_FILE).unlink()
    names.refuse_report(tmp_path, force=False)
    os.mkfifo(tmp_path / names.JSON_FILE)  # who reads one waits for somebody to write
    with pytest.raises(OutputExistsError, match="not a quantisation report"):
        names.refuse_report(tmp_path, force=True)
    (tmp_path / names.JSON_FILE).unlink()
    (tmp_path / names.PAGE_FILE).mkdir()
    with pytest.raises(OutputExistsError, match="not a quantisation report"):
        names.refuse_report(tmp_path, force=True)
