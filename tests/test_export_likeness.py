"""Calibration images that are unlike those of the training, and answers that quantising loses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import evaluated
import numpy as np
import pytest
import torch
from commands import call, one_sentence
from evaluated import PREPROCESSING
from hypothesis import given
from hypothesis import strategies as st
from quantised import INT8, quantised, tiny

from parnet_deploy.bundle import open_model
from parnet_deploy.errors import ExportError
from parnet_deploy.export.likeness import MOST, NEAR, check_likeness, unlikeness
from parnet_deploy.export.quantising import (
    LEAST_AGREEMENT,
    Quantised,
    QuantiseOptions,
    check_agreement,
    check_reads,
)
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.spec import Array, Preprocessing
from parnet_deploy.spec.learned import LearnedRanges
from parnet_deploy.spec.quantisation import Quantiser

Capture = pytest.CaptureFixture[str]


def calibration(values: Array, *, in_graph: bool = False) -> CalibrationImages:
    return CalibrationImages(
        values=values,
        preprocessing=replace(PREPROCESSING, in_graph=in_graph),
        sha256="0" * 64,
        source="the test's",
    )


def noise(count: int = 16) -> Array:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 3, *PREPROCESSING.size), dtype=np.uint8)


def test_images_like_those_of_the_training_are_alike() -> None:
    network = evaluated.network()
    alike = calibration(evaluated.pixels(evaluated.samples(5, seed=2)))
    assert 1.0 < unlikeness(network, alike) < NEAR
    assert check_likeness(network, alike, doubtful=False) is None
    assert not network.training
    assert all(not module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("in_graph", [False, True])
def test_noise_is_unlike_them(in_graph: bool) -> None:
    network, images = evaluated.network(), calibration(noise(), in_graph=in_graph)
    assert unlikeness(network, images) > MOST
    with pytest.raises(ExportError, match=r"by a factor of \d.* and 1\.7 is .*--allow-doub"):
        check_likeness(network, images, doubtful=False)
    said = check_likeness(network, images, doubtful=True)
    assert said is not None
    assert "may cut off" in said


def test_what_is_not_finite_is_unlike_anything() -> None:
    norm = torch.nn.BatchNorm2d(3).eval()
    values = calibration(np.full((1, 3, 4, 4), 1e30, np.float32))  # its square is infinite
    with pytest.raises(ExportError, match="by a factor of"):
        check_likeness(norm, values, doubtful=False)
    values.values[...] = np.nan
    with pytest.raises(ExportError, match="by a factor of nan"):
        check_likeness(norm, values, doubtful=False)


def test_a_channel_that_is_always_the_same_says_nothing() -> None:
    norm = torch.nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.running_mean.fill_(0.5)  # type: ignore[union-attr]
        norm.running_var.zero_()  # type: ignore[union-attr]
    same = calibration(np.full((2, 3, 32, 32), 0.5, np.float32))
    assert unlikeness(norm, same) == pytest.approx(1.0)


@given(factor=st.floats(0.01, 100.0))
def test_unlikeness_is_the_factor_of_the_power(factor: float) -> None:
    norm = torch.nn.BatchNorm2d(3, eps=0.0).eval()
    values = np.ones((2, 3, 4, 4), np.float32) * np.float32(np.sqrt(factor))
    found = unlikeness(norm, calibration(values))
    assert found == pytest.approx(max(factor, 1 / factor), rel=1e-4)


def options(*, doubtful: bool = False) -> QuantiseOptions:
    assert INT8 is not None
    return QuantiseOptions(
        name="tiny", precision="int8", scheme=INT8, images=tiny().images, doubtful=doubtful
    )


def test_answers_that_are_lost_are_refused_unless_it_is_allowed() -> None:
    effect = Effect(agreement=LEAST_AGREEMENT, relative=0.1, snr=10.0, accuracy=None)
    good = Quantised(graph=tiny().graph, quantisation=quantised(tiny()), effect=effect)
    assert check_agreement(good, options()) is None
    assert check_agreement(replace(good, effect=None), options()) is None
    bad = replace(good, effect=replace(effect, agreement=0.7969))
    with pytest.raises(ExportError, match=r"79\.69% of the calibration .* 80% is asked for: --q"):
        check_agreement(bad, options())
    said = check_agreement(bad, options(doubtful=True))
    assert said is not None
    assert "79.69%" in said


def reading(scale: float) -> Quantised:
    """A range of the images from -128 to 127 times the scale."""
    tensors = {"images": Quantiser(dtype="int8", scale=scale)}
    return Quantised(graph=tiny().graph, quantisation=replace(quantised(tiny()), tensors=tensors))


def test_a_range_of_another_normalisation_is_refused_unless_it_is_allowed() -> None:
    read = Preprocessing(size=(32, 32))  # black to white: -2.118 to 2.64
    assert check_reads(reading(2.64 / 127), options(), read) is None
    for scale in (1.0 / 127, 4.0 / 127):
        with pytest.raises(ExportError, match=r"another norm.*--calibrate .* uint8.*--allow-doub"):
            check_reads(reading(scale), options(), read)
        said = check_reads(reading(scale), options(doubtful=True), read)
        assert said is not None
        assert "another normalisation" in said


def test_of_what_was_learned_and_of_dark_images_it_is_warned() -> None:
    read, narrow = Preprocessing(size=(32, 32)), reading(1.0 / 127)
    found = narrow.quantisation
    ranges = LearnedRanges(scheme=found.scheme, calibration=found.calibration, ranges={})
    said = check_reads(narrow, replace(options(), images=None, learned=ranges), read)
    assert said is not None
    assert "another normalisation" in said
    dark = replace(options(), images=calibration(noise() // 16))
    assert "0 to 15 of 255" in (check_reads(narrow, dark, read) or "")


@pytest.mark.parametrize("count", [1, 4])
def test_one_image_that_is_lost_is_warned_of_and_two_are_refused(count: int) -> None:
    few = replace(options(), images=calibration(noise(count)))
    effect = Effect(agreement=1 - 1 / count, relative=0.1, snr=10.0, accuracy=None)
    found = Quantised(graph=tiny().graph, quantisation=quantised(tiny()), effect=effect)
    assert f": 1 of {count}, and so few" in (check_agreement(found, few) or "")
    if count > 1:
        with pytest.raises(ExportError, match="nothing was written"):
            check_agreement(replace(found, effect=replace(effect, agreement=0.5)), few)


def test_export_refuses_noise_and_goes_on_where_it_is_told_to(
    capsys: Capture, tmp_path: Path
) -> None:
    checkpoint = evaluated.write_checkpoint(tmp_path / "checkpoint.safetensors")
    np.savez(tmp_path / "noise.npz", images=noise())
    asked = ("--checkpoint", checkpoint, "--precision", "int8", "--for", "onnxruntime")
    asked += ("--calibrate", tmp_path / "noise.npz", "--output", tmp_path / "model")
    one_sentence(call(capsys, "export", *asked), 1, "unlike", "--allow-doubtful", "--calibrate")
    assert not (tmp_path / "model").exists()
    result = call(capsys, "export", *asked, "--allow-doubtful")
    assert result.status == 0, result.err
    assert "WARNING the calibration images are unlike" in result.err
    assert any("unlike" in said for said in open_model(tmp_path / "model").manifest.warnings)
