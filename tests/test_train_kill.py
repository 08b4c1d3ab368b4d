"""Trainings in processes of their own: killed, interrupted, terminated; alone and in pairs."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.data_sets import colour_data
from tests.distributed import ROOT, free_port

pytestmark = pytest.mark.slow

OPTIONS = (
    "--widths", "4,8,8,8", "--blocks", "2,1,1", "--image-size", "8", "--epochs", "6",
    "--batch-size", "8", "--warmup-epochs", "1", "--save-every", "2", "--ema-decay", "0.9",
    "--device", "cpu", "--optimiser", "sgd", "--learning-rate", "0.05",
)  # fmt: skip
STEPS = 6 * 9  # 72 images


def start(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
    program = [sys.executable, "-m"]
    if processes > 1:
        program += [
            "torch.distributed.run", "--nproc-per-node", str(processes),
            "--master-port", str(free_port()), "-m",
        ]  # fmt: skip
    return subprocess.Popen(
        [*program, "parnet_deploy", "train", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"imagefolder:{colour_data(tmp_path_factory.mktemp('data'), train=24, test=3)}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = finish(start("--data", data, "--output", folder, *OPTIONS))
    assert status == 0, err
    return folder


def wait_for_step(process: subprocess.Popen[str], folder: Path, beyond: int) -> int:
    """Wait until a step beyond one is saved; how many are then, or all where it has ended."""
    end = time.monotonic() + 120
    step, state, seen = beyond, folder / "last.pt", None
    while process.poll() is None and step <= beyond:
        assert time.monotonic() < end
        time.sleep(0.01)
        if state.exists() and (written := state.stat().st_mtime_ns) != seen:
            step, seen = torch.load(state)["step"], written  # read once: it takes a core's time
    return step


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, data: str, whole: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start("--data", data, "--output", folder, *OPTIONS)
    reached = [0]
    for steps in (0, 11):
        reached.append(wait_for_step(process, folder, reached[-1] + steps))
        process.send_signal(number)
        status, _, err = finish(process)
        if status == 0:  # it was quicker
            break
        expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
        assert status == expected[number], err
        assert "Traceback" not in err
        if number != signal.SIGKILL:
            assert f"stopped; go on with: parnet-deploy train --resume {folder}" in err
        process = start("--resume", folder, "--device", "cpu")
    if process.poll() is None:
        status, _, err = finish(process)
        assert status == 0, err
    assert 0 < reached[1] < STEPS
    for name in ("checkpoint.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    rows = [
        [(row["epoch"], row["train_loss"], row["test_loss"], row["test_top1"]) for row in reader]
        for reader in (
            csv.DictReader((run / "metrics.csv").read_text().splitlines())
            for run in (folder, whole)
        )
    ]
    assert rows[0] == rows[1]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert json.loads((folder / "run.json").read_text())["result"]["last"]["step"] == STEPS


def test_a_pair_of_processes_trains_the_network_of_one(
    tmp_path: Path, data: str, whole: Path
) -> None:
    """Without dropout, with synchronised BN: the same losses, to rounding; and it resumes."""
    folder = tmp_path / "pair"
    options = (*OPTIONS, "--sync-bn")
    process = start("--data", data, "--output", folder, *options, processes=2)
    wait_for_step(process, folder, 0)
    process.send_signal(signal.SIGTERM)
    status, _, _ = finish(process)
    if status != 0:
        assert json.loads((folder / "run.json").read_text())["result"] is None
        status, _, err = finish(start("--resume", folder, "--device", "cpu", processes=2))
    assert status == 0, err
    losses = [
        [float(row["train_loss"]) for row in csv.DictReader(text.splitlines())]
        for text in ((run / "metrics.csv").read_text() for run in (folder, whole))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert len(losses[0]) == 6


def test_an_error_ends_all_of_a_pair(tmp_path: Path, data: str) -> None:
    status, _, err = finish(start("--data", data, "--output", tmp_path, *OPTIONS, processes=2))
    assert status != 0
    assert f"error: {tmp_path} exists already" in err


def test_an_error_in_one_of_a_pair_is_no_defect_in_the_other(tmp_path: Path) -> None:
    folder = colour_data(tmp_path / "data", train=24, test=3)
    broken = folder / "train" / "green" / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    options = ("--data", f"imagefolder:{folder}", "--output", tmp_path / "run", *OPTIONS)
    status, _, err = finish(start(*options, processes=2))
    assert status != 0
    assert f"error: {broken} is damaged or cut short" in err
    assert "defect of parnet-deploy" not in err
