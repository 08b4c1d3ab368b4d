"""``parnet-deploy train`` as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parnet_deploy.net import load_checkpoint
from parnet_deploy.spec import decode
from parnet_deploy.train.files import held
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES
from tests.commands import Result, call
from tests.data_sets import colour_data, colour_folders, fake_cifar10

# Small enough for two epochs to take a moment.
SMALL = ("--widths", "4,8,8,8", "--blocks", "2,1,1", "--image-size", "8")
QUICKLY = ("--epochs", 2, "--batch-size", 8, "--warmup-epochs", 0)


def error(result: Result, status: int, *parts: str) -> None:
    """One clear sentence."""
    assert result.status == status, result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line, line


@pytest.fixture
def data(tmp_path: Path) -> str:
    return f"imagefolder:{colour_data(tmp_path / 'data', train=8, test=3)}"


def train(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> Result:
    return call(capsys, "train", "--output", folder, *SMALL, *QUICKLY, *arguments)


def test_train_on_a_folder_of_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    folder = tmp_path / "run"
    result = train(capsys, folder, "--data", data, "--export-test-images")
    assert result.status == 0, result.err
    assert result.out.startswith(f"{folder}: digits, ")
    assert "right on the test split: " in result.out
    assert f"next: parnet-deploy export --checkpoint {folder}/checkpoint.safetensors" in result.out
    assert [line[:11] for line in result.err.splitlines()] == ["  epoch 1/2", "  epoch 2/2"]
    found = load_checkpoint(folder / "checkpoint.safetensors")
    assert found.facts.labels == ("blue", "green", "red")
    assert found.model.spec.classes == 3
    assert len(list((folder / "images").rglob("*.png"))) == 9


def test_json_is_the_record(capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str) -> None:
    folder = tmp_path / "run"
    result = train(capsys, folder, "--data", data, "--json", "--precision", "bf16", "--seed", 7)
    record = json.loads(result.out)
    assert record == json.loads((folder / "run.json").read_text())
    settings = record["config"]["settings"]
    assert (settings["precision"], settings["seed"]) == ("bf16", 7)
    assert record["config"]["recipe"]["epochs"] == 2
    assert record["result"]["last"]["epoch"] == 2


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_printed_as_it_would_be_used(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    result = call(
        capsys, "train", "--recipe", name, "--variant", "m", "--print-config", "--batch-size", 1024,
    )  # fmt: skip
    assert result.status == 0, result.err
    said = json.loads(result.out)
    assert (said["spec"]["name"], said["spec"]["classes"]) == ("m", 10)
    assert said["data"] == "digits"
    expected = RECIPES[name].changed(batch_size=1024)
    assert decode(json.dumps(said["recipe"]), Recipe) == expected
    assert said["spec"]["conv_dropout"] == (expected.conv_dropout or 0.0)


def test_options_that_change_nothing_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    idle = ("--decay-at", "0.5", "--nesterov", "--crop-scale", "0.5,1", "--rand-augment-noise", 1)
    result = train(capsys, tmp_path / "run", "--data", data, *idle)
    assert result.status == 0
    for option, why in (
        ("--decay-at", "the schedule is a cosine"),
        ("--nesterov", "the optimiser is adamw"),
        ("--crop-scale", "the crop is whole"),
        ("--rand-augment-noise", "there is no rand-augment"),
    ):
        assert f"WARNING {option} changes nothing: {why}" in result.err
    assert result.err.count("WARNING") == 4
    result = train(capsys, tmp_path / "steps", "--data", data, "--schedule", "step")
    assert "WARNING a schedule of steps without --decay-at" in result.err


def test_two_trainings_into_one_folder_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    folder = tmp_path / "run"
    train(capsys, folder, "--data", data)
    with held(folder):
        for arguments in (["--force", "--data", data],):
            result = train(capsys, folder, *arguments)
            error(result, 1, f"another process is training into {folder}")
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"result": None}))
        error(call(capsys, "train", "--resume", folder), 1, "another process is training into")
    assert call(capsys, "train", "--resume", folder).status == 0


def test_a_class_that_cannot_be_read_is_not_learnt_and_one_alone_neither(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    for path in (tmp_path / "data" / "train" / "red").iterdir():
        path.write_text("no image")
    result = train(capsys, tmp_path / "run", "--data", data, "--skip-bad")
    error(result, 1, "not one image of red can be decoded")
    one = colour_data(tmp_path / "one", ("red",), train=8, test=2)
    result = train(capsys, tmp_path / "second", "--data", f"imagefolder:{one}")
    error(result, 1, "has one class, 'red'")


def test_a_state_that_is_gone_is_not_passed_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    folder = tmp_path / "run"
    train(capsys, folder, "--data", data)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"result": None}))
    (folder / "last.pt").unlink()
    error(call(capsys, "train", "--resume", folder), 1, "last.pt is gone", "--finetune")
    result = call(capsys, "train", "--resume", folder / "checkpoint.safetensors")
    error(result, 1, f"did you mean {folder}?")


def test_a_folder_without_a_test_split_needs_a_part_held_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = f"imagefolder:{colour_folders(tmp_path / 'flat', count=12)}"
    error(train(capsys, tmp_path / "run", "--data", data), 1, "--hold-out")
    assert not (tmp_path / "run").exists()
    result = train(capsys, tmp_path / "run", "--data", data, "--hold-out", 0.25)
    assert result.status == 0, result.err
    # Without it, evaluate takes all images; it says that some were learnt from.
    learnt = "it was trained on these images with --hold-out 0.25"
    same = call(capsys, "evaluate", tmp_path / "run", "--data", data, "--hold-out", 0.25)
    assert learnt not in same.err
    for network in (tmp_path / "run", tmp_path / "run" / "best.safetensors"):
        result = call(capsys, "evaluate", network, "--data", data)
        assert result.status == 0, result.err
        assert learnt in result.err


def test_cifar(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fake_cifar10(tmp_path, monkeypatch, per_file=10)
    result = train(capsys, tmp_path / "run", "--data", f"cifar10:{root}", "--recipe", "cifar-400")
    assert result.status == 0, result.err
    found = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert (found.model.spec.dropout, found.model.spec.conv_dropout) == (0.2, 0.2)
    assert found.facts.labels[:2] == ("airplane", "automobile")


def test_fine_tuning_takes_other_classes_and_another_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    train(capsys, tmp_path / "first", "--data", data, "--epochs", 1)
    checkpoint = tmp_path / "first" / "checkpoint.safetensors"
    other = colour_data(tmp_path / "other", ("black", "white"), train=8, test=2)
    result = call(
        capsys, "train", "--finetune", checkpoint, "--data", f"imagefolder:{other}",
        "--image-size", 16, "--output", tmp_path / "second", *QUICKLY, "--epochs", 1,
    )  # fmt: skip
    assert result.status == 0, result.err
    found = load_checkpoint(tmp_path / "second" / "checkpoint.safetensors")
    assert found.facts.labels == ("black", "white")
    assert found.model.spec.image_size == (16, 16)
    assert found.model.spec.stream_widths == (4, 8, 8)
    config = json.loads((tmp_path / "second" / "run.json").read_text())["config"]
    assert config["start"]["file"] == "checkpoint.safetensors"
    result = call(
        capsys, "train", "--finetune", checkpoint, "--widths", "4,8,8,8",
        "--output", tmp_path / "third",
    )  # fmt: skip
    error(result, 2, "--finetune takes the checkpoint's network; leave away --widths")
    result = call(capsys, "train", "--finetune", checkpoint, "--variant", "digits")
    error(result, 2, "leave away --variant")


def test_resuming_takes_nothing_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    folder = tmp_path / "run"
    train(capsys, folder, "--data", data)
    again = call(capsys, "train", "--resume", folder)
    assert again.status == 0, again.err
    assert "2 epochs" in again.out
    result = call(capsys, "train", "--resume", folder, "--epochs", 5, "--force")
    error(result, 2, "leave away --force, --epochs")
    result = call(capsys, "train", "--resume", tmp_path / "nowhere")
    error(result, 1, "there is no training run in", "nowhere")


def test_a_bad_image_is_named_or_skipped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    bad = [tmp_path / "data" / part / "red" / "000.png" for part in ("train", "val")]
    for path in bad:
        path.write_bytes(path.read_bytes()[:60])
    result = train(capsys, tmp_path / "run", "--data", data)
    error(result, 1, "red/000.png is damaged or cut short", "--skip-bad")
    result = train(capsys, tmp_path / "again", "--data", data, "--skip-bad")
    assert result.status == 0, result.err
    assert "skipped: 2 images" in result.out
    assert " of 8 (" in result.out  # of 9, one of which is bad
    failed = json.loads((tmp_path / "again" / "run.json").read_text())["result"]["failed"]
    assert sorted(failed) == sorted(map(str, bad))


def test_a_loss_that_is_not_finite_ends_the_training_and_not_what_was_saved(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    folder = tmp_path / "run"
    result = train(
        capsys, folder, "--data", data, "--optimiser", "sgd", "--learning-rate", "1e30",
        "--epochs", 4,
    )  # fmt: skip
    error(result, 1, "no longer finite" if "weight" in result.err else "the loss is not finite")
    assert not (folder / "last.pt").exists()
    result = call(capsys, "train", "--resume", folder, "--device", "cpu")
    assert result.status == 1  # it comes apart again, at the same place


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--data", "digitz"], 2, "did you mean 'digits'?"),
        (["--data", "imagefolder:nowhere"], 1, "nowhere"),
        (["--data", "imagefolder"], 2, "imagefolder:PATH"),
        (["--recipe", "imagenet"], 2, "imagenet-120"),
        (["--variant", "xxl"], 2, "did you mean 'xl'?"),
        (["--epochs", "0"], 2, "epochs is at least 1"),
        (["--epochs", "many"], 2, "'--epochs'"),
        (["--batch-size", "100000"], 2, "do not fill one batch of 100000"),
        (["--micro-batch", "7"], 2, "multiple of 7"),
        (["--device", "tpu"], 2, "a device is cpu, cuda or cuda:N"),
        (["--device", "cuda:9"], 2, "no device cuda:9"),
        (["--image-size", "33"], 2, "multiple of 4"),
        (["--finetune", "nothing.pth"], 1, "no checkpoint file at nothing.pth"),
        (["--hold-out", "0.5"], 2, "has a test split of its own"),
        (["--seed", "-1"], 2, "seed is 0 or more"),
        (["--depth", "3"], 2, ""),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(capsys, "train", *arguments)
    error(result, status, words)
    assert list(tmp_path.iterdir()) == []


def test_what_stands_there_is_not_replaced(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    error(train(capsys, tmp_path / "run", "--data", data), 1, "exists already", "--force")
    error(train(capsys, tmp_path / "run", "--data", data, "--force"), 1, "is not ours")
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"
