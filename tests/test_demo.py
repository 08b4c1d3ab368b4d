"""The demo: its verdict can fail, and the script as a newcomer starts it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import export_tiny
from PIL import Image

from parnet_deploy.bundle import BatchRange
from parnet_deploy.engine import BuildOptions, build_engine, make_builder

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
LABELS = tuple(f"class {index}" for index in range(7))


def load_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_report", SCRIPTS / "demo_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_report"] = module
    spec.loader.exec_module(module)
    return module


report = load_report()


def three_forms() -> tuple[np.ndarray, list[report.Answers]]:
    """100 images of 4 classes; every form gets all but the last two right."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 100)
    logits = rng.standard_normal((100, 4))
    logits[np.arange(100), truth] += 10
    logits[-2:, :] = np.eye(4)[(truth[-2:] + 1) % 4]
    return truth, [
        report.Answers(form=form, logits=logits + change)
        for form, change in (("training form", 0.0), ("graph", 1e-6), ("engine", -1e-6))
    ]


def test_judge_passes_forms_that_agree() -> None:
    truth, answers = three_forms()
    assert report.judge(answers, truth, minimum=0.98) == []
    assert report.greatest_difference(answers) == pytest.approx(2e-6)


def test_judge_fails_below_the_minimum() -> None:
    truth, answers = three_forms()
    problems = report.judge(answers, truth, minimum=0.981)
    assert len(problems) == 3
    assert "training form gets 98.00% right" in problems[0]


def test_judge_fails_when_one_image_is_wrong() -> None:
    truth, answers = three_forms()
    flipped = answers[2].logits.copy()
    flipped[5] = np.eye(4)[(truth[5] + 1) % 4]
    answers[2] = replace(answers[2], logits=flipped)
    (problem,) = report.judge(answers, truth, minimum=0.9)
    assert "engine and the training form" in problem
    assert "differ on 1 of 100" in problem


def test_judge_fails_when_as_many_but_other_images_are_right() -> None:
    truth, answers = three_forms()
    swapped = answers[1].logits.copy()
    swapped[5] = np.eye(4)[(truth[5] + 1) % 4]
    swapped[-1] = np.eye(4)[truth[-1]]
    answers[1] = replace(answers[1], logits=swapped)
    assert answers[1].right(truth).sum() == answers[0].right(truth).sum()
    (problem,) = report.judge(answers, truth, minimum=0.9)
    assert "differ on 2 of 100" in problem


def test_judge_fails_on_what_is_no_number() -> None:
    truth, answers = three_forms()
    broken = answers[1].logits.copy()
    broken[0, 0] = np.nan
    answers[1] = replace(answers[1], logits=broken)
    assert any("not finite" in problem for problem in report.judge(answers, truth, minimum=0.9))


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny network's model, its engines, and images named after what the network sees."""
    folder = tmp_path_factory.mktemp("demo")
    model = export_tiny(folder / "model", batch=BatchRange(min=1, opt=2, max=4))
    options = BuildOptions(provider="cpu", threads=1)
    paths = {"model": model.path, "checkpoint": model.file("checkpoint.safetensors")}
    for split in (False, True):
        name = "split" if split else "whole"
        builder = make_builder("onnxruntime", options, split=split)
        paths[name] = build_engine(model, folder / name, builder, split=split).path
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = folder / "images" / LABELS[index] / f"{index}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    return paths | {"images": folder / "images"}


def arguments(forms: dict[str, Path], minimum: float) -> list[str]:
    given = [word for name, path in forms.items() for word in (f"--{name}", str(path))]
    return [*given, "--minimum", str(minimum)]


def test_report_of_real_engines(forms: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Five forms, run on files; an untrained network is right by chance, which is enough for 0."""
    assert report.main(arguments(forms, 0)) == 0
    output = capsys.readouterr().out
    for form in ("training form", "fused form", "ONNX graph", "whole engine", "split engine"):
        assert form in output
    assert "right in every form" in output


def test_report_fails_when_too_few_are_right(
    forms: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(arguments(forms, 100)) == 1
    assert "right, less than 100%" in capsys.readouterr().err


def test_report_notices_an_engine_of_other_weights(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images are named after what the right network sees: one form is then all wrong."""
    _, answers = report.collect(report.parse(arguments(forms, 0)))
    images = tmp_path / "images"
    for index, path in enumerate(sorted(forms["images"].rglob("*.png"))):
        seen = LABELS[int(answers[0].logits[index].argmax())]
        (images / seen).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, images / seen)
    other = export_tiny(tmp_path / "other", seed=5, batch=BatchRange(min=1, opt=2, max=4))
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=False)
    stale = build_engine(other, tmp_path / "stale", builder, split=False).path
    good = forms | {"images": images}
    assert report.main(arguments(good, 100)) == 0
    assert report.main(arguments(good | {"whole": stale}, 0)) == 1
    assert "whole engine" in capsys.readouterr().err


def test_report_refuses_folders_that_are_no_labels(
    forms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "cat" / "0.png")
    assert report.main(arguments(forms | {"images": tmp_path}, 0)) == 1
    assert "['cat'] are not labels" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_script(tmp_path: Path) -> None:
    """All of it, but one epoch; beside what an earlier run left. It fails where it should."""
    (tmp_path / "scripts").mkdir()
    for name in ("demo", "demo_report.py"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    setup = tmp_path / "scripts" / "setup"
    setup.write_text("#!/bin/sh\n")
    setup.chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "models" / "demo").mkdir(parents=True)
    result = subprocess.run(
        [tmp_path / "scripts" / "demo"],
        env={**os.environ, "DEMO_EPOCHS": "1", "DEMO_MINIMUM": "100", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert "replacing models/demo" in output
    assert "$ parnet-deploy train --data digits" in output
    assert "less than 100%" in result.stderr
    assert "do not get the same images right" not in output
    assert result.returncode == 1, output
    made = {path.name for path in (tmp_path / "engines").iterdir()}
    assert made == {"demo", "demo-split", "demo-rtx", "demo-rtx-split"}
    assert (tmp_path / "engines" / "demo-split" / "verify.html").is_file()
    assert len(list((tmp_path / "runs" / "demo" / "images").rglob("*.png"))) == 599
