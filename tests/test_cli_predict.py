"""``parnet-deploy predict``: any engine, any images, and what happens to bad ones."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from commands import call_and_close
from conftest import Cli, clean_error, export_tiny
from PIL import Image

from parnet_deploy.bundle import BatchRange, EngineBundle, ModelBundle
from parnet_deploy.cli.predict import Prediction, Problem, command, predict
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import RunnerError
from parnet_deploy.images import load_images
from parnet_deploy.net import load_checkpoint
from parnet_deploy.runtime import FunctionRunner
from parnet_deploy.spec import Array, TensorSpec

CPU = BuildOptions(provider="cpu", threads=1)


def build(model: ModelBundle, final: Path, *, split: bool = False) -> EngineBundle:
    return build_engine(model, final, make_builder("onnxruntime", CPU, split=split), split=split)


@pytest.fixture(scope="module")
def engine(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> EngineBundle:
    """Whole, logits, batch 1 to 4. Read only."""
    return build(tiny_bundle_dynamic, tmp_path_factory.mktemp("engines") / "whole")


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (80, 60)) -> Path:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [photo(tmp_path / f"photo{seed}.png", seed) for seed in range(5)]


@pytest.fixture
def bad(tmp_path: Path) -> list[Path]:
    """A JPEG cut short, an empty file, a text, and a file that is not there."""
    buffer = io.BytesIO()
    Image.new("RGB", (200, 200), "red").save(buffer, "JPEG")
    paths = [tmp_path / name for name in ("cut.jpg", "empty.png", "text.png", "missing.png")]
    paths[0].write_bytes(buffer.getvalue()[:-400])
    paths[1].write_bytes(b"")
    paths[2].write_text("I am no image\n")
    return paths


def expected(model: ModelBundle, paths: list[Path]) -> np.ndarray:
    """(N, classes) probabilities by the network in training form, in torch."""
    import torch

    network = load_checkpoint(model.file("checkpoint.safetensors")).model
    images = load_images(paths, replace(model.manifest.preprocessing, in_graph=False))
    with torch.inference_mode():
        return network(torch.from_numpy(images)).softmax(1).numpy()


def said_by(output: str) -> np.ndarray:
    """(N, classes) probabilities out of the command's JSON, by the place of the class."""
    report = json.loads(output)
    assert report["problems"] == []
    rows = []
    for prediction in report["predictions"]:
        by_index = {guess["index"]: guess["probability"] for guess in prediction["guesses"]}
        rows.append([by_index[index] for index in range(len(by_index))])
    return np.array(rows)


# --- every kind of engine -----------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["float", "uint8"])
def test_predict_equals_the_network(
    split: bool,
    softmax: bool,
    in_graph: bool,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Five images through a batch of two: one run is filled up, and its filling is dropped."""
    batch = BatchRange(min=2, opt=2, max=2)
    model = export_tiny(tmp_path / "model", softmax=softmax, preprocess=in_graph, batch=batch)
    engine = build(model, tmp_path / "engine", split=split)
    capsys.readouterr()
    command(engine.path, photos, top=7, as_json=True)
    assert np.allclose(said_by(capsys.readouterr().out), expected(model, photos), atol=1e-5)


# --- what is printed ----------------------------------------------------------------------------


def test_predict_command(
    engine: EngineBundle, tiny_bundle_dynamic: ModelBundle, photos: list[Path], cli: Cli
) -> None:
    """As a user calls it: five labels an image, the likeliest first, a folder for all in it."""
    result = cli("predict", engine.path, photos[0], photos[0].parent)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        str(path) for path in (photos[0], *photos)
    ]
    truth = expected(tiny_bundle_dynamic, photos[:1])[0]
    best = np.argsort(-truth)[:5]
    assert lines[1:6] == [f"  {truth[n]:7.2%}  {engine.labels[n]}" for n in best]


def test_predict_gives_all_classes_where_there_are_fewer_than_asked_for(
    engine: EngineBundle, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command(engine.path, photos[:1], top=1000, as_json=True)
    guesses = json.loads(capsys.readouterr().out)["predictions"][0]["guesses"]
    assert len(guesses) == 7
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1.0)
    chances = [guess["probability"] for guess in guesses]
    assert chances == sorted(chances, reverse=True)


def test_predict_needs_no_torch(engine: EngineBundle, photos: list[Path]) -> None:
    program = (
        "import sys; from parnet_deploy.cli.main import run; status = run(sys.argv[1:]); "
        "sys.exit(99 if 'torch' in sys.modules else status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "predict", engine.path, photos[0]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert photos[0].name in result.stdout


# --- bad input ----------------------------------------------------------------------------------


def test_bad_images_lose_nothing_of_the_others(
    engine: EngineBundle, photos: list[Path], bad: list[Path], here: Cli
) -> None:
    result = here("predict", engine.path, photos[0], *bad, photos[1], "--top", 1)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    warning, *errors = result.stderr.splitlines()
    assert warning.startswith("WARNING"), "these answers mean nothing"
    assert "UNTRAINED" in warning
    assert len(errors) == 4
    for path, said, error in zip(
        bad, ("cut short", "is empty", "not an image", "no image file"), errors, strict=True
    ):
        assert error.startswith("error: ")
        assert str(path) in error
        assert said in error
    answered = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert answered == [str(photos[0]), str(photos[1])]


def test_a_closed_pipe_is_no_error(engine: EngineBundle, photos: list[Path]) -> None:
    assert call_and_close("predict", engine.path, *photos, stream="stdout") == 0


def test_bad_images_in_json(
    engine: EngineBundle,
    photos: list[Path],
    bad: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as ended:
        command(engine.path, [bad[1], photos[0]], as_json=True)
    assert ended.value.exit_code == 1
    report = json.loads(capsys.readouterr().out)
    assert [item["image"] for item in report["predictions"]] == [str(photos[0])]
    assert [item["image"] for item in report["problems"]] == [str(bad[1])]
    assert "is empty" in report["problems"][0]["error"]


def test_one_bad_image_is_one_clear_sentence(
    engine: EngineBundle, bad: list[Path], here: Cli
) -> None:
    clean_error(here("predict", engine.path, bad[0]), "cut.jpg", "damaged or cut short")


@pytest.mark.parametrize("kind", ["missing", "empty folder", "model bundle"])
def test_what_is_no_engine(
    kind: str, tiny_bundle: ModelBundle, photos: list[Path], tmp_path: Path, here: Cli
) -> None:
    paths = {
        "missing": tmp_path / "nowhere",
        "empty folder": tmp_path / "empty",
        "model bundle": tiny_bundle.path,
    }
    (tmp_path / "empty").mkdir()
    said = {
        "missing": "there is no bundle",
        "empty folder": "is not a bundle",
        "model bundle": "'parnet-deploy/engine' bundle is needed",
    }
    clean_error(here("predict", paths[kind], photos[0]), said[kind], str(paths[kind]))


# --- the parts, over doubles --------------------------------------------------------------------


def double(
    bundle: EngineBundle, batch: BatchRange, fed: list[Array]
) -> tuple[EngineBundle, FunctionRunner]:
    """The bundle as if of another batch range, and a runner that answers with the mean value.

    Its logits are the image's mean at class 0 and minus the mean at class 1.
    """
    other = replace(bundle, manifest=replace(bundle.manifest, batch=batch))

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        fed.append(feeds["images"])
        means = feeds["images"].mean((1, 2, 3), dtype=np.float64)
        logits = np.zeros((len(means), 7), np.float32)
        logits[:, 0], logits[:, 1] = means, -means
        return {"logits": logits}

    runner = FunctionRunner(
        run,
        inputs=(TensorSpec(name="images", shape=(batch.axis, 3, 64, 64), dtype="float32"),),
        outputs=(TensorSpec(name="logits", shape=(batch.axis, 7), dtype="float32"),),
    )
    return other, runner


def grey(path: Path, value: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (64, 64), value).save(path)
    return path


def test_order_is_kept_across_batches_bad_images_and_folders(
    engine: EngineBundle, tmp_path: Path, bad: list[Path]
) -> None:
    """Bright and dark images are told apart by the double, each in its own place."""
    bright, dark = grey(tmp_path / "a.png", 250), grey(tmp_path / "b.png", 5)
    folder = grey(tmp_path / "folder" / "c.png", 5).parent
    empty = tmp_path / "none"
    empty.mkdir()
    fed: list[Array] = []
    bundle, runner = double(engine, BatchRange(min=2, opt=2, max=2), fed)
    given = [bright, bad[0], dark, dark, folder, empty, bright]
    results = list(predict(bundle, runner, given, top=1))
    seen = [
        "problem" if isinstance(result, Problem) else result.guesses[0].index for result in results
    ]
    assert seen == [0, "problem", 1, 1, 1, "problem", 0]
    assert [Path(result.image) for result in results] == [
        bright, bad[0], dark, dark, folder / "c.png", empty, bright,
    ]  # fmt: skip
    assert all(len(images) == 2 for images in fed)
    assert isinstance(results[5], Problem)
    assert "no image in the folder" in results[5].error


def test_images_are_decoded_a_batch_at_a_time(engine: EngineBundle, tmp_path: Path) -> None:
    """The first answers come before the last images are read: thousands fit in memory."""
    first, later = grey(tmp_path / "a.png", 250), tmp_path / "later.png"
    bundle, runner = double(engine, BatchRange(), [])
    results = predict(bundle, runner, [first, later], top=1)
    assert isinstance(next(results), Prediction)
    grey(later, 250)  # only now is it there
    assert isinstance(next(results), Prediction)


def test_values_that_are_no_numbers_name_the_engine(engine: EngineBundle, tmp_path: Path) -> None:
    fed: list[Array] = []
    bundle, runner = double(engine, BatchRange(), fed)
    broken = FunctionRunner(
        lambda feeds: {name: rows * np.nan for name, rows in runner.run(feeds).items()},
        inputs=runner.inputs,
        outputs=runner.outputs,
    )
    with pytest.raises(RunnerError, match=rf"{bundle.path.name}: .* not finite; .*verify"):
        next(predict(bundle, broken, [grey(tmp_path / "a.png", 250)], top=1))
