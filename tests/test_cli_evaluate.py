"""``parnet-deploy evaluate``: any form, any data, and what happens to bad input."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import evaluated
import pytest
from commands import Result, call, one_sentence
from conftest import DATA, Cli
from PIL import Image
from rich.console import Console

from parnet_deploy.bundle import open_model
from parnet_deploy.engine import BuildOptions, build_engine, make_builder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, a model, two engines and images. Read only."""
    from parnet_deploy.cli.main import run

    room = tmp_path_factory.mktemp("evaluate")
    (room / "run").mkdir()
    checkpoint = evaluated.write_checkpoint(room / "run" / "checkpoint.safetensors")
    evaluated.write_images(room / "images")
    before = signal.getsignal(signal.SIGTERM)
    options = ["--output", str(room / "model"), "--batch", "1:4:8"]
    assert run(["export", "--checkpoint", str(checkpoint), *options]) == 0
    signal.signal(signal.SIGTERM, before)
    for name, parts in (("whole", False), ("split", True)):
        builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=parts)
        build_engine(open_model(room / "model"), room / name, builder, split=parts)
    return room


def evaluate(capsys: Capture, room: Path, subject: object, *options: object) -> Result:
    data = f"imagefolder:{room / 'images'}"
    return call(capsys, "evaluate", room / str(subject), "--data", data, *options)


def as_json(result: Result) -> dict[str, Any]:
    assert result.status == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


# --- the numbers --------------------------------------------------------------------------------


def test_the_same_numbers_for_every_form(room: Path, capsys: Capture) -> None:
    """A checkpoint, the run that it is in, its model, and both kinds of engine."""
    subjects = ("run/checkpoint.safetensors", "run", "model", "whole", "split")
    found = [as_json(evaluate(capsys, room, subject, "--json")) for subject in subjects]
    assert [each["kind"] for each in found] == [
        "checkpoint",
        "checkpoint",
        "model",
        *["engine"] * 2,
    ]
    first, *others = (each["measures"] for each in found)
    assert 0 < first["top1"]["right"] < first["top1"]["images"] == 35
    for other in others:
        assert other["top1"] == first["top1"]
        assert other["topk"] == first["topk"]
        assert other["confusion"] == first["confusion"]
        assert other["loss"] == pytest.approx(first["loss"], abs=2e-6)
    assert found[0]["preprocessing"] == found[3]["preprocessing"]
    assert found[0]["precision"] == "fp32"
    assert found[0]["tools"]["torch"]


def test_as_a_user_calls_it(room: Path, cli: Cli) -> None:
    data = f"imagefolder:{room / 'images'}"
    result = cli("evaluate", room / "split", "--data", data, "--ten-crop", "--batch", 4)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == f"{room / 'split'}: tiny, fp32; onnxruntime, split into 4 engines, on cpu"
    assert lines[1] == f"on {data}, test split: 35 images; 7 classes, matched by name"
    assert "ten crops, averaged, of 32x32 out of 37x37, bilinear" in lines[2]
    head, values = lines[4], lines[6]
    assert head.split()[:1] + head.split()[-3:] == ["top-1", "images", "skipped", "images/s"]
    assert "95 % interval" in head
    assert "%" in values
    assert values.split()[-3:-1] == ["35", "0"]
    table = [line.split()[:2] for line in lines[-7:]]
    assert table == [[label, "5"] for label in evaluated.LABELS]


def test_an_engine_needs_no_torch(room: Path) -> None:
    program = (
        "import sys; from parnet_deploy.cli.main import run; status = run(sys.argv[1:]); "
        "sys.exit(99 if {'torch', 'torchvision', 'sklearn'} & {*sys.modules} else status)"
    )
    data = f"imagefolder:{room / 'images'}"
    result = subprocess.run(
        [sys.executable, "-c", program, "evaluate", room / "whole", "--data", data, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr


def test_many_classes_are_told_by_the_worst(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authors' checkpoint: 1000 classes, its labels and its preprocessing are ImageNet's."""
    evaluated.write_images(tmp_path / "trees")
    for name, label in (("ash", "tench"), ("oak", "goldfish")):
        (tmp_path / "trees" / name).rename(tmp_path / "trees" / label)
    for name in evaluated.LABELS[1:-1]:
        shutil.rmtree(tmp_path / "trees" / name)
    monkeypatch.setattr("parnet_deploy.cli.evaluate.BATCH", 2)
    checkpoint = DATA / "official_tiny_relu.pth.tar"
    options = ["--activation", "relu", "--image-size", "64", "--crop-ratio", "0.5"]
    source = f"imagefolder:{tmp_path / 'trees'}"
    result = call(capsys, "evaluate", checkpoint, "--data", source, *options, "--limit", 3)
    assert result.status == 0, result.err
    assert "1000 classes, matched by name" in result.out
    assert "3 of 10 images" in result.out
    assert "of 64x64 out of 128x128" in result.out
    assert "mean and deviation are ImageNet's, as it names none; batch 2" in result.out
    table = result.out.split("the least recognised classes")[1]
    assert "tench" in table
    assert "goldfish" in table
    assert len(table.splitlines()) == 5, "title's end, head, rule, and two classes"


@pytest.mark.parametrize(
    ("option", "value"), [("--activation", "relu"), ("--no-ema", None), ("--device", "cpu")]
)
def test_what_a_bundle_has_built_in_cannot_be_chosen(
    option: str, value: str | None, room: Path, capsys: Capture
) -> None:
    given = [option] if value is None else [option, value]
    name = "--ema" if option == "--no-ema" else option
    one_sentence(evaluate(capsys, room, "whole", *given), 2, f"{name} is for checkpoints")


def test_a_checkpoints_own_options(room: Path, capsys: Capture) -> None:
    plain = as_json(evaluate(capsys, room, "run", "--json"))["measures"]
    options = ["--channels-last", "--device", "cpu", "--precision", "fp32", "--batch", "5"]
    found = as_json(evaluate(capsys, room, "run", "--json", *options))
    assert found["batch"] == 5
    assert found["measures"]["top1"] == plain["top1"]
    assert found["measures"]["loss"] == pytest.approx(plain["loss"], abs=2e-6)


def test_another_size_and_crop(room: Path, capsys: Capture) -> None:
    """A checkpoint takes any; the same size is no other for an engine, either."""
    found = as_json(evaluate(capsys, room, "run", "--json", "--image-size", "64x32"))
    assert found["preprocessing"]["size"] == [64, 32]
    ratio = ["--json", "--crop-ratio", "1", "--image-size", "32"]
    both = [as_json(evaluate(capsys, room, name, *ratio)) for name in ("run", "whole")]
    assert [each["preprocessing"]["crop_ratio"] for each in both] == [1.0, 1.0]
    assert both[0]["measures"]["confusion"] == both[1]["measures"]["confusion"]


# --- how far it is ------------------------------------------------------------------------------


def test_progress_in_a_log(room: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every few seconds: here, after every batch."""
    monkeypatch.setattr("parnet_deploy.cli.evaluation.EVERY", 0.0)
    lines = evaluate(capsys, room, "whole", "--json").err.splitlines()
    assert len(lines) == 5, "35 images, 8 at a time"
    first = re.fullmatch(r"  8 of 35 images: ([\d.]+)% right, \d+ images/s, \d+ s left", lines[0])
    assert first
    assert 0 < float(first[1]) <= 100
    assert lines[-1].startswith("  35 of 35 images: ")
    assert lines[-1].endswith(", 0 s left")
    monkeypatch.undo()
    assert evaluate(capsys, room, "whole", "--json").err == "", "it is done in no time"


def test_progress_on_a_terminal(
    room: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("parnet_deploy.cli.evaluation.errors", terminal)
    as_json(evaluate(capsys, room, "whole", "--json"))
    assert "evaluating" in screen.getvalue()
    assert "35/35" in screen.getvalue()
    assert re.search(r"[\d.]+% right, \d+ images/s", screen.getvalue())


# --- checks that can fail -----------------------------------------------------------------------


def test_a_minimum_that_is_missed(room: Path, capsys: Capture) -> None:
    result = evaluate(capsys, room, "whole", "--minimum", "99.5", "--json")
    assert result.status == 1
    found = json.loads(result.out)
    assert (found["minimum"], found["passed"]) == (99.5, False)
    assert "FAILED" in result.err
    assert "at least 99.5 % are asked for" in result.err


def test_a_minimum_that_is_reached(room: Path, capsys: Capture) -> None:
    result = evaluate(capsys, room, "whole", "--minimum", "10", "--json")
    assert as_json(result)["passed"] is True
    assert "FAILED" not in result.err


# --- what is written ----------------------------------------------------------------------------


def test_a_report_is_written_and_not_overwritten(
    room: Path, capsys: Capture, tmp_path: Path
) -> None:
    final = tmp_path / "new" / "report"
    result = evaluate(capsys, room, "whole", "--output", final)
    assert result.status == 0
    assert f"written: {final}" in result.err
    names = sorted(path.name for path in final.iterdir())
    assert names == [
        "classes.csv", "confusion.csv", "confusion.svg", "evaluation.json", "images.csv",
    ]  # fmt: skip
    assert len((final / "images.csv").read_text().splitlines()) == 36
    one_sentence(evaluate(capsys, room, "run", "--output", final), 1, "exists already", "--force")
    assert json.loads((final / "evaluation.json").read_text())["kind"] == "engine"
    assert evaluate(capsys, room, "run", "--output", final, "--force").status == 0
    assert json.loads((final / "evaluation.json").read_text())["kind"] == "checkpoint"
    assert [path.name for path in final.parent.iterdir()] == ["report"]


def test_a_report_is_written_where_the_minimum_is_missed(
    room: Path, capsys: Capture, tmp_path: Path
) -> None:
    final = tmp_path / "report"
    assert evaluate(capsys, room, "whole", "--output", final, "--minimum", 100).status == 1
    assert json.loads((final / "evaluation.json").read_text())["passed"] is False


def test_what_is_not_a_report_is_not_replaced(room: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = evaluate(capsys, room, "whole", "--output", tmp_path, "--force")
    one_sentence(result, 1, "is not ours")
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_an_output_that_cannot_be_written_is_told_before_anything_is_run(
    room: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("parnet_deploy.cli.evaluate._evaluate", lambda *_: pytest.fail("was run"))
    result = evaluate(capsys, room, "whole", "--output", tmp_path / "file" / "report")
    one_sentence(result, 1, "cannot write", "is not a folder")


def test_nothing_is_left_where_it_fails(room: Path, capsys: Capture, tmp_path: Path) -> None:
    result = evaluate(capsys, room, "whole", "--output", tmp_path / "report", "--batch", 9)
    one_sentence(result, 2, "1 to 8")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_no_report(
    room: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    result = evaluate(capsys, room, "whole", "--output", tmp_path / "report")
    one_sentence(result, 1, "matplotlib", "parnet-deploy[export]")


def test_a_closed_pipe_ends_quietly(room: Path) -> None:
    command = [sys.executable, "-m", "parnet_deploy", "evaluate", str(room / "whole"), "--json"]
    with subprocess.Popen(
        [*command, "--data", f"imagefolder:{room / 'images'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


# --- bad input ----------------------------------------------------------------------------------


@pytest.fixture
def spoilt(room: Path, tmp_path: Path) -> Path:
    """A room whose images are in part cut short, and one is text."""
    for name in ("whole", "run"):
        (tmp_path / name).symlink_to(room / name)
    shutil.copytree(room / "images", tmp_path / "images")
    for label in ("ash", "oak"):
        path = min((tmp_path / "images" / label).iterdir())
        path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "images" / "fir" / "text.png").write_text("I am no image\n")
    return tmp_path


def test_a_bad_image_ends_it_with_its_name(spoilt: Path, capsys: Capture) -> None:
    result = evaluate(capsys, spoilt, "whole")
    one_sentence(result, 1, str(spoilt / "images" / "ash"), "damaged or cut short")
    assert result.out == ""


def test_bad_images_are_skipped_and_counted(spoilt: Path, capsys: Capture) -> None:
    found = as_json(evaluate(capsys, spoilt, "whole", "--skip-bad", "--json"))
    assert found["measures"]["top1"]["images"] == 33
    assert [Path(problem["image"]).parent.name for problem in found["skipped"]] == [
        "ash", "fir", "oak",
    ]  # fmt: skip
    assert "not an image" in found["skipped"][1]["error"]
    result = evaluate(capsys, spoilt, "whole", "--skip-bad")
    lines = [line for line in result.err.splitlines() if line.startswith("skipped: ")]
    assert len(lines) == 3
    assert "text.png" in lines[1]


def test_of_many_bad_images_the_first_are_named(
    spoilt: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parnet_deploy.cli.evaluation.PROBLEMS", 1)
    lines = evaluate(capsys, spoilt, "whole", "--skip-bad").err.splitlines()
    assert len(lines) == 2
    assert lines[1] == "skipped: 2 more; --json lists all"


def test_where_all_images_are_bad_it_fails(spoilt: Path, capsys: Capture) -> None:
    for path in (spoilt / "images").glob("*/*.png"):
        path.write_text("I am no image\n")
    result = evaluate(capsys, spoilt, "whole", "--skip-bad")
    one_sentence(result, 1, "none of the 36 images can be used")


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("nothing", 1, "there is nothing at"),
        ("empty folder", 1, "is not a bundle"),
        ("text", 1, "cannot read"),
        ("damaged engine", 1, "build it again"),
    ],
)
def test_what_is_no_network(
    kind: str, status: int, said: str, room: Path, capsys: Capture, tmp_path: Path
) -> None:
    path = tmp_path / kind
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("I am no checkpoint\n")
    elif kind == "damaged engine":
        shutil.copytree(room / "whole", path)
        graph = next(found for found in path.iterdir() if found.suffix in (".onnx", ".ort"))
        graph.write_bytes(graph.read_bytes()[:-10])
    result = call(capsys, "evaluate", path, "--data", f"imagefolder:{room / 'images'}")
    one_sentence(result, status, said, str(path))


def test_data_that_is_not_there(room: Path, capsys: Capture, tmp_path: Path) -> None:
    def run(source: str, *options: object) -> Result:
        return call(capsys, "evaluate", room / "whole", "--data", source, *options)

    (tmp_path / "empty").mkdir()
    (tmp_path / "classes" / "ash").mkdir(parents=True)
    one_sentence(run("imagefolder:nowhere"), 1, "nowhere does not exist")
    one_sentence(run(f"imagefolder:{tmp_path / 'empty'}"), 1, str(tmp_path / "empty"))
    one_sentence(run(f"imagefolder:{tmp_path / 'classes'}"), 1, "holds no image")
    one_sentence(run("digit"), 2, "digit")
    held_out = run(f"imagefolder:{room / 'images'}", "--hold-out", "0.2", "--json")
    assert 0 < as_json(held_out)["measures"]["top1"]["images"] < 35


def test_classes_with_other_names(room: Path, capsys: Capture, tmp_path: Path) -> None:
    """All of them others: matched by order, and said; one of them: which is meant?"""
    shutil.copytree(room / "images", tmp_path / "images")
    (tmp_path / "whole").symlink_to(room / "whole")
    (tmp_path / "images" / "oak").rename(tmp_path / "images" / "oaks")
    one_sentence(evaluate(capsys, tmp_path, "whole"), 1, "oaks", "none of the network's")
    for name in (tmp_path / "images").iterdir():
        name.rename(name.with_name(f"x{name.name}"))
    result = evaluate(capsys, tmp_path, "whole")
    assert result.status == 0
    assert "WARNING" in result.err
    assert "matched in this order" in result.err
    assert "matched by order" in result.out


def test_more_classes_than_the_network_has(room: Path, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(room / "images", tmp_path / "images")
    shutil.copytree(room / "images" / "oak", tmp_path / "images" / "pine")
    (tmp_path / "whole").symlink_to(room / "whole")
    one_sentence(evaluate(capsys, tmp_path, "whole"), 1, "pine", "it knows 7")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--batch", "9"], 2, "takes 1 to 8 images a run"),
        (["--image-size", "64"], 2, "takes images of 32x32 pixels and no others"),
        (["--image-size", "big"], 2, "such as 224 or 192x320"),
        (["--crop-ratio", "1.5"], 2, "crop ratio lies in (0, 1]"),
        (["--minimum", "101"], 2, "--minimum"),
        (["--limit", "0"], 2, "--limit"),
        (["--split", "validation"], 2, "--split"),
        (["--hold-out", "2"], 2, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], status: int, said: str, room: Path, capsys: Capture
) -> None:
    one_sentence(evaluate(capsys, room, "whole", *options), status, said)


def test_a_checkpoint_on_a_gpu_that_is_not_there(
    room: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    one_sentence(evaluate(capsys, room, "run", "--device", "cuda"), 1, "torch finds no CUDA device")
    one_sentence(evaluate(capsys, room, "run", "--image-size", "40"), 2, "40")


@pytest.mark.slow
def test_an_interrupt_ends_it_at_once(room: Path, tmp_path: Path) -> None:
    """In the middle of many images; nothing is left half-written."""
    for label in evaluated.LABELS:
        (tmp_path / "images" / label).mkdir(parents=True)
    large = tmp_path / "images" / "ash" / "0.png"
    Image.effect_noise((2500, 2500), 60).save(large, compress_level=1)
    for index in range(1, 400):
        large.with_name(f"{index}.png").hardlink_to(large)
    for label in evaluated.LABELS[1:]:
        (tmp_path / "images" / label / "0.png").hardlink_to(large)
    command = [sys.executable, "-m", "parnet_deploy", "evaluate", str(room / "whole")]
    process = subprocess.Popen(
        [*command, "--data", f"imagefolder:{tmp_path / 'images'}", "--output", tmp_path / "report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".report.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    before = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - before < 10
    assert err.splitlines()[-1] == "interrupted; nothing was left half-written"
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
