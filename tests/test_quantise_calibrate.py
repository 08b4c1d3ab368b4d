"""From a graph and images to a quantisation, and that to JSON and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import export_tiny
from observed import convolutions, images

from parnet_deploy.errors import ExportError, UsageError
from parnet_deploy.quantise.calibrate import calibrate, record
from parnet_deploy.quantise.observe import observe
from parnet_deploy.quantise.plausible import check_ranges
from parnet_deploy.spec import decode, encode
from parnet_deploy.spec.form import Backend
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import (
    CalibrationMethod,
    Quantisation,
    Scheme,
    scheme_of,
)
from parnet_deploy.spec.ranges import reach

TENSORS = ("images", "first", "second")


def scheme(precision: Precision = "int8", backend: Backend = "tensorrt") -> Scheme:
    found = scheme_of(precision, backend)
    assert found is not None
    return found


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
@pytest.mark.parametrize(
    ("precision", "backend"), [("int8", "tensorrt"), ("int8", "onnxruntime"), ("fp8", "tensorrt")]
)
def test_a_quantisation_says_what_it_was_made_of(
    precision: Precision, backend: Backend, method: CalibrationMethod, tmp_path: Path
) -> None:
    fed = images(tmp_path)
    how = scheme(precision, backend)
    found = calibrate(convolutions(), how, fed, tensors=TENSORS, method=method)
    assert found.scheme == how
    assert tuple(found.tensors) == TENSORS
    assert {quantiser.dtype for quantiser in found.tensors.values()} == {how.activation}
    assert found.calibration.method == method
    assert found.calibration.images == 5
    assert found.calibration.sha256 == fed.sha256
    assert found.calibration.source == "5 images of images.npz"
    assert found.calibration.percentile == (99.99 if method == "percentile" else None)
    assert (found.kept, found.equalised, found.bias_corrected) == ((), False, False)
    assert check_ranges(found.tensors, fed.preprocessing) is None
    seen = observe(convolutions(), TENSORS, fed)
    for name, quantiser in found.tensors.items():
        assert reach(quantiser).greatest <= 1.01 * seen[name].greatest
    assert decode(encode(found), Quantisation) == found


def test_the_same_images_give_the_same_quantisation(tmp_path: Path) -> None:
    once, again = (
        calibrate(convolutions(), scheme(), images(tmp_path), tensors=TENSORS) for _ in range(2)
    )
    assert once == again
    assert encode(once) == encode(again)


def test_what_cannot_be_is_refused_before_images_are_run(tmp_path: Path) -> None:
    told: list[int] = []
    for method, percentile in (("percentile", 20.0), ("entropy", 99.0), ("qat", None)):
        with pytest.raises(UsageError):
            calibrate(
                convolutions(),
                scheme(),
                images(tmp_path),
                tensors=TENSORS,
                method=method,  # type: ignore[arg-type]
                percentile=percentile,
                progress=lambda done, total: told.append(done),
            )
    assert not told


def test_a_layer_without_a_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the layer 'nothing'"):
        calibrate(convolutions(), scheme(), images(tmp_path), tensors=("nothing",))
    tiny = convolutions(scale=1e-37)
    with pytest.raises(UsageError, match=r"'first'.*no range can be found"):
        calibrate(tiny, scheme(), images(tmp_path), tensors=("first",))


def test_ranges_learned_in_training_are_recorded_too(tmp_path: Path) -> None:
    found = record(images(tmp_path), "qat")
    assert (found.method, found.percentile, found.images) == ("qat", None, 5)


def test_images_that_were_normalised_otherwise_are_found_in_what_was_recorded(
    tmp_path: Path,
) -> None:
    """The seeded fault: what is fed is not what the manifest's preprocessing would give."""
    fed = images(tmp_path)
    wrong = (fed.values / 255).astype(np.float32)
    faulty = type(fed)(values=wrong, preprocessing=fed.preprocessing, sha256="", source="")
    found = calibrate(convolutions(), scheme(), faulty, tensors=TENSORS, method="minmax")
    said = check_ranges(found.tensors, fed.preprocessing)
    assert said is not None
    assert "another normalisation" in said


def test_of_a_graph_that_normalises_what_it_makes_is_quantised(tmp_path: Path) -> None:
    bundle = export_tiny(tmp_path / "tiny", preprocess=True)
    fed = images(tmp_path, in_graph=True, size=bundle.manifest.spec.image_size)
    found = calibrate(
        bundle.path / "model.onnx", scheme(), fed, tensors=("preprocess",), method="minmax"
    )
    assert reach(found.tensors["preprocess"]).high == pytest.approx(2.64, abs=0.01)
    assert check_ranges(found.tensors, bundle.manifest.preprocessing) is None
