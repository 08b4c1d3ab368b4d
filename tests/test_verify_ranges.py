"""A single scale that is off by two in graphs and manifest, on images not calibrated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import verify_precision as precise

from parnet_deploy.bundle import CHECKPOINT, ModelBundle, ModelManifest
from parnet_deploy.net import fuse, load_checkpoint
from parnet_deploy.spec.quantisation import Calibration, Quantisation
from parnet_deploy.verify.inputs import batches, from_npz
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.ranges import RANGES, SINGLE, check_ranges_of, observe_ranges
from parnet_deploy.verify.result import CheckResult, TensorRange
from parnet_deploy.verify.verifying import verify


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precise.write_pixels(tmp_path_factory.mktemp("pixels") / "others.npz", seed=1)


@pytest.fixture(scope="module")
def int8(others: Path) -> ModelBundle:
    pixels = precise.write_pixels(others.parent / "pixels.npz", count=64)
    return precise.export_precision(others.parent / "int8", pixels)


@pytest.fixture(scope="module")
def seen(int8: ModelBundle, others: Path) -> tuple[TensorRange, ...]:
    manifest = int8.manifest
    inputs = from_npz(others, manifest.preprocessing, samples=32)
    fused = fuse(load_checkpoint(int8.file(CHECKPOINT)).model, manifest.form)
    return observe_ranges(fused, manifest, batches(inputs, manifest.preprocessing, 1))


def single(
    manifest: ModelManifest, seen: tuple[TensorRange, ...], *, same: bool = False
) -> CheckResult:
    checks = check_ranges_of(manifest, seen, same=same)
    return next(check for check in checks if check.name == SINGLE)


def test_sound_ranges_pass(int8: ModelBundle, seen: tuple[TensorRange, ...]) -> None:
    found = single(int8.manifest, seen)
    assert found.verdict == "passed", found.detail
    assert f"{len(seen)} tensors are" in found.detail


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_any_single_scale_that_is_off_by_two_is_named(
    factor: float, int8: ModelBundle, seen: tuple[TensorRange, ...]
) -> None:
    missed = []
    median = float(np.median([one.ratio for one in seen]))
    for place, one in enumerate(seen):
        wrong = (*seen[:place], replace(one, ratio=one.ratio / factor), *seen[place + 1 :])
        found = single(int8.manifest, wrong)
        if found.verdict != "failed" or f"the range of '{one.tensor}' is" not in found.detail:
            missed.append(one.ratio / median)
    allowed = (ratio > 1.15 if factor == 2 else ratio < 0.8 for ratio in missed)
    assert all(allowed), missed
    assert len(missed) <= len(seen) / 10, "most are found"


@pytest.mark.parametrize(("factor", "how"), [(0.5, "too narrow"), (2.0, "too wide")])
def test_verify_finds_it(
    factor: float, how: str, int8: ModelBundle, others: Path, tmp_path: Path
) -> None:
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, precise.times_scale("stem4", factor))
    precise.change_quantisation(path, precise.times_scale_said("stem4", factor))
    found = verify(path, VerifyOptions(npz=others))
    assert found.failures
    assert f"{SINGLE}: the range of 'stem4' is" in found.failures[0]
    assert how in found.failures[0]


@pytest.mark.parametrize(
    ("changes", "images", "why"),
    [
        ({}, 31, "it takes 32 images"),
        ({"images": 63}, 32, "calibrated on 64 or more"),
        ({"method": "entropy"}, 32, "ranges by entropy are not told so nearly"),
    ],
)
def test_what_cannot_be_judged_is_said(
    changes: dict[str, object],
    images: int,
    why: str,
    int8: ModelBundle,
    seen: tuple[TensorRange, ...],
) -> None:
    quantisation = int8.manifest.quantisation
    assert quantisation is not None
    calibration: Calibration = replace(quantisation.calibration, **changes)  # type: ignore[arg-type]
    other: Quantisation = replace(quantisation, calibration=calibration)
    manifest = replace(int8.manifest, quantisation=other)
    found = single(manifest, tuple(replace(one, images=images) for one in seen))
    assert found.verdict == "not verified"
    assert why in found.detail
    assert "--calibrate" in found.detail


def test_a_tensor_that_is_zero_on_these_images(
    int8: ModelBundle, seen: tuple[TensorRange, ...]
) -> None:
    far = [replace(one, ratio=0.3) for one in seen[1:]]
    found = check_ranges_of(int8.manifest, [replace(seen[0], ratio=0.0), *far], same=False)
    ranges = next(check for check in found if check.name == RANGES)
    assert ranges.verdict == "failed"
    assert f"those of '{seen[0].tensor}' 0 times" in ranges.detail


def test_noise_judges_no_scale(int8: ModelBundle) -> None:
    found = verify(int8.path, VerifyOptions(samples=1))
    assert [c.verdict for c in found.checks if c.name == SINGLE] == ["not verified"]
