"""A training run's folder, and the command that makes one."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli, clean_error

from parnet_deploy.errors import OutputExistsError, TrainingError
from parnet_deploy.images import find_images, load_images
from parnet_deploy.net import load_checkpoint
from parnet_deploy.spec import variant
from parnet_deploy.train import RECIPES, DataSet, Split, load_data, train_run
from parnet_deploy.train import run as run_module

SMALL = replace(
    variant("digits").spec.with_widths((4, 8, 8, 8)), stream_blocks=(2, 1, 1), image_size=(16, 16)
)
SHORT = replace(RECIPES["quick"], epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def data() -> DataSet:
    """A few of the digits, small."""
    digits = load_data("digits", (16, 16))
    train, test = (
        Split(images=split.images[:n], labels=split.labels[:n])
        for split, n in ((digits.train, 64), (digits.test, 20))
    )
    return replace(digits, train=train, test=test)


def test_run_folder_holds_what_the_next_commands_need(tmp_path: Path, data: DataSet) -> None:
    final = tmp_path / "runs" / "digits"
    summary = train_run(final, SMALL, data, SHORT, seed=3, export_test_images=True)
    assert sorted(path.name for path in final.iterdir()) == [
        "checkpoint.safetensors", "images", "metrics.csv", "run.json",
    ]  # fmt: skip
    assert (final / "checkpoint.safetensors").stat().st_mode & 0o077 == 0o044

    checkpoint = load_checkpoint(final / "checkpoint.safetensors")
    assert checkpoint.facts.labels == data.labels
    assert checkpoint.facts.preprocessing == data.preprocessing
    paths = sorted(find_images(final / "images"), key=lambda path: path.stem)
    with torch.inference_mode():
        images = torch.from_numpy(load_images(paths, data.preprocessing))
        guesses = checkpoint.model(images).argmax(1).numpy()
    assert int((guesses == data.test.labels).sum()) == summary.test_correct

    rows = list(csv.DictReader((final / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1"]
    assert np.isfinite(float(rows[0]["loss"]))
    said = json.loads((final / "run.json").read_text())
    assert said["seed"] == 3
    assert said["recipe"]["epochs"] == 1
    assert said["test_correct"] == summary.test_correct


def test_run_takes_the_number_of_classes_from_the_data(tmp_path: Path, data: DataSet) -> None:
    summary = train_run(tmp_path / "run", replace(SMALL, classes=1000), data, SHORT, seed=0)
    assert summary.spec.classes == 10


def test_run_is_replaced_only_when_told_to(tmp_path: Path, data: DataSet) -> None:
    final = tmp_path / "run"
    train_run(final, SMALL, data, SHORT, seed=0, export_test_images=True)
    with pytest.raises(OutputExistsError, match="--force"):
        train_run(final, SMALL, data, SHORT, seed=1)
    train_run(final, SMALL, data, SHORT, seed=1, force=True)
    assert json.loads((final / "run.json").read_text())["seed"] == 1
    assert not (final / "images").exists()  # nothing of the older run is left among the new


def test_force_does_not_replace_what_is_no_run(tmp_path: Path, data: DataSet) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match=r"no run\.json"):
        train_run(tmp_path, SMALL, data, SHORT, seed=0, force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_run_that_comes_apart_leaves_nothing(
    tmp_path: Path, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "run"
    train_run(final, SMALL, data, SHORT, seed=0)

    def explode(*args: object, **kwargs: object) -> None:
        raise TrainingError("the loss is nan at step 1")

    monkeypatch.setattr(run_module, "train", explode)
    with pytest.raises(TrainingError):
        train_run(final, SMALL, data, SHORT, seed=1, force=True)
    assert json.loads((final / "run.json").read_text())["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--variant", "digit"), "did you mean 'digits'"),
        (("--epochs", "0"), "--epochs"),
    ],
)
def test_train_command_refuses(arguments: tuple[str, ...], said: str, cli: Cli) -> None:
    result = cli("train", *arguments)
    clean_error(result, said)
    assert result.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminate"]
)
def test_train_command_interrupted_leaves_nothing(
    tmp_path: Path, how: signal.Signals, status: int
) -> None:
    command = [sys.executable, "-m", "parnet_deploy", "train", "--output", "runs/one"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    while not list(tmp_path.glob("runs/.one.*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 120
        time.sleep(0.1)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status
    assert "nothing was left half-written" in stderr
    assert "Traceback" not in stderr
    assert list((tmp_path / "runs").iterdir()) == []
