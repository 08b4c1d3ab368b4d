"""A zero point that is wrong in graphs and manifest alike, and images that are just others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import verify_precision as precise

from parnet_deploy.bundle import CHECKPOINT, ModelBundle, ModelManifest
from parnet_deploy.net import fuse, load_checkpoint
from parnet_deploy.spec.quantisation import Quantisation
from parnet_deploy.spec.ranges import Range
from parnet_deploy.verify.inputs import batches, from_npz
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.ranges import (
    RANGES,
    SINGLE,
    SINGLE_MOST,
    _moved,
    check_ranges_of,
    observe_ranges,
)
from parnet_deploy.verify.result import CheckResult, TensorRange
from parnet_deploy.verify.verifying import verify

STEPS = {True: 4, False: 60}
"""By which a zero point is off, on the images that were calibrated on and on others."""

SIDES = {1: "higher", -1: "lower"}
"""Where the true range then lies."""


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precise.write_pixels(tmp_path_factory.mktemp("pixels") / "pixels.npz", count=64)


@pytest.fixture(scope="module")
def others(pixels: Path) -> Path:
    return precise.write_pixels(pixels.parent / "others.npz", seed=1)


@pytest.fixture(scope="module")
def int8(pixels: Path) -> ModelBundle:
    """With zero points: what ONNX Runtime is fast with."""
    return precise.export_precision(pixels.parent / "int8", pixels, "int8", "onnxruntime")


def ranges_on(
    images: Path, model: ModelBundle, manifest: ModelManifest | None = None
) -> tuple[TensorRange, ...]:
    manifest = manifest or model.manifest
    inputs = from_npz(images, manifest.preprocessing, samples=64)
    fused = fuse(load_checkpoint(model.file(CHECKPOINT)).model, manifest.form)
    return observe_ranges(fused, manifest, batches(inputs, manifest.preprocessing, 1))


@pytest.fixture(scope="module")
def seen(int8: ModelBundle, others: Path) -> tuple[TensorRange, ...]:
    return ranges_on(others, int8)


def check(
    model: ModelBundle, ranges: tuple[TensorRange, ...], name: str, *, same: bool = False
) -> CheckResult:
    found = check_ranges_of(model.manifest, ranges, same=same)
    return next(one for one in found if one.name == name)


def said(tensor: str, steps: int) -> Callable[[Quantisation], Quantisation]:
    """A zero point in the manifest is off by so many steps."""

    def change(found: Quantisation) -> Quantisation:
        one = found.tensors[tensor]
        wrong = replace(one, zero_point=one.zero_point + steps)
        return replace(found, tensors={**found.tensors, tensor: wrong})

    return change


def test_how_far_a_range_lies_beside_another() -> None:
    ends = Range(low=-1.0, high=3.0)
    assert _moved(Range(low=-0.6, high=3.6), ends) == pytest.approx(0.1)
    assert _moved(Range(low=-1.2, high=2.8), ends) == pytest.approx(-0.05)
    # SiLU's least value is always the same: where it lies elsewhere, and the other end does not.
    assert _moved(Range(low=-0.2, high=3.0), ends) == pytest.approx(0.2 - 0.3 * 0.2 / 4)
    for other in ((-1.2, 3.6), (-0.9, 2.5), (-1.0, 9.0), (-1.2, 3.0)):  # not beside it
        assert _moved(Range(low=other[0], high=other[1]), ends) == 0.0


def test_sound_ones_pass(int8: ModelBundle, seen: tuple[TensorRange, ...], pixels: Path) -> None:
    found = check(int8, seen, SINGLE)
    assert found.verdict == "passed", found.detail
    same = ranges_on(pixels, int8)
    for name in (RANGES, SINGLE):
        found = check(int8, same, name, same=True)
        assert found.verdict == "passed", found.detail


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("sign", SIDES)
def test_one_that_is_off_is_named(
    sign: int,
    same: bool,
    int8: ModelBundle,
    seen: tuple[TensorRange, ...],
    pixels: Path,
    others: Path,
) -> None:
    steps = sign * STEPS[same]
    images, name = (pixels, RANGES) if same else (others, SINGLE)
    right = ranges_on(pixels, int8) if same else seen
    quantisation = int8.manifest.quantisation
    assert quantisation is not None
    shifted = quantisation
    for tensor, how in quantisation.tensors.items():
        if how.dtype == "uint8" and 0 <= how.zero_point + steps <= 255:
            shifted = said(tensor, steps)(shifted)
    manifest = replace(int8.manifest, quantisation=shifted)
    wrong = ranges_on(images, int8, manifest)
    missed = tried = 0
    for place, one in enumerate(wrong):
        if shifted.tensors[one.tensor] == quantisation.tensors[one.tensor]:
            continue
        found = check(int8, (*right[:place], one, *right[place + 1 :]), name, same=same)
        tried += 1
        if found.verdict != "failed":
            missed += 1
            continue
        assert f"the range of '{one.tensor}' is" in found.detail
        assert f"{SIDES[sign]}: its zero point is wrong" in found.detail
    assert tried > 10
    assert missed <= (0 if same else tried / 5)


def test_verify_finds_it_on_other_images(int8: ModelBundle, others: Path, tmp_path: Path) -> None:
    assert int8.manifest.quantisation is not None
    right = int8.manifest.quantisation.tensors["stem4"].zero_point
    steps = STEPS[False]
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, precise.zero_point("stem4", right + steps))
    precise.change_quantisation(path, said("stem4", steps))
    found = verify(path, VerifyOptions(npz=others))
    assert any(
        f"{SINGLE}: the range of 'stem4' is" in failure and "zero point is wrong" in failure
        for failure in found.failures
    ), found.failures


def test_where_many_are_off_it_is_the_images(
    int8: ModelBundle, seen: tuple[TensorRange, ...]
) -> None:
    few = tuple(replace(one, ratio=2 * one.ratio) for one in seen[:SINGLE_MOST])
    assert check(int8, (*few, *seen[SINGLE_MOST:]), SINGLE).verdict == "failed"
    many = tuple(replace(one, ratio=2 * one.ratio) for one in seen[: SINGLE_MOST + 1])
    found = check(int8, (*many, *seen[SINGLE_MOST + 1 :]), SINGLE)
    assert found.verdict == "not verified"
    assert "unlike those that it was calibrated on" in found.detail
