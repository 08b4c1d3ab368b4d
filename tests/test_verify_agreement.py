"""Whether images keep their class: what must be kept, what is needed, and what is not judged."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import verify_faults as faults
import verify_precision as precise
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import AGREEMENT, AGREEMENT_CHANCE, needed_alike
from parnet_deploy.verify import wording
from parnet_deploy.verify.agreement import agreement_of
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.result import Agreement
from parnet_deploy.verify.verifying import verify


def below(number: int, images: int, share: float) -> float:
    """The chance of fewer than `number` of so many images, by the binomial distribution."""
    return sum(math.comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(number))


@given(images=st.integers(1, 80), share=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_what_is_needed_is_missed_by_chance_once_in_a_hundred(images: int, share: float) -> None:
    needed = needed_alike(images, share)
    assert below(needed, images, share) <= AGREEMENT_CHANCE
    assert below(needed + 1, images, share) > AGREEMENT_CHANCE or needed == images
    assert needed <= math.ceil(images * share)


@pytest.mark.parametrize(
    ("images", "share", "needed"), [(1, 0.95, 0), (2, 0.95, 1), (32, 0.95, 27), (1000, 0.9, 877)]
)
def test_what_is_needed_of_a_few_images(images: int, share: float, needed: int) -> None:
    assert needed_alike(images, share) == needed


def counted(want: Array, got: Array, tolerance: float, share: float | None) -> Agreement:
    found = agreement_of({"logits": want}, {"logits": got}, tolerance, share)
    assert found is not None
    return found


def test_nothing_is_judged_where_no_image_is_decided_and_no_share_is_asked() -> None:
    want = np.eye(4)
    found = counted(want, want, 0.6, None)
    assert (found.decided, found.judged, found.held) == (0, False, True)
    assert counted(want, want, 0.4, None).judged


@pytest.mark.parametrize(("lost", "held"), [(0, True), (5, True), (6, False), (32, False)])
def test_a_share_of_all_images_must_keep_their_class(lost: int, held: bool) -> None:
    want = np.eye(4)[np.arange(32) % 4]
    got = want.copy()
    got[:lost] = np.roll(got[:lost], 1, axis=1)
    found = counted(want, got, 0.9, AGREEMENT["int8"])
    assert (found.alike, found.needed, found.held) == (32 - lost, 27, held)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precise.write_pixels(tmp_path_factory.mktemp("pixels") / "pixels.npz")


@pytest.fixture(scope="module")
def int8(pixels: Path) -> ModelBundle:
    return precise.export_precision(pixels.parent / "int8", pixels)


def exchange_best(mean: Array) -> precise.Change:
    """The classifier's rows of the two likeliest classes are exchanged, by three fifths."""
    second, best = np.argsort(mean)[-2:]

    def change(model: onnx.ModelProto) -> None:
        for constant in model.graph.initializer:
            if constant.name in ("logits.weight", "logits.bias"):
                values = numpy_helper.to_array(constant).copy()
                values[[second, best]] = 0.4 * values[[second, best]] + 0.6 * values[[best, second]]
                constant.CopyFrom(numpy_helper.from_array(values, constant.name))

    return change


def test_classes_that_change_places_within_the_tolerance(
    int8: ModelBundle, pixels: Path, tmp_path: Path
) -> None:
    options = VerifyOptions(npz=pixels)
    good = verify(int8.path, options)
    assert good.passed, good.failures
    whole = good.rungs[3]
    assert "27 are needed (95 % of all must)" in wording.agreement(whole)
    assert whole.first is not None
    assert whole.first.agreement is not None
    assert whole.first.agreement.judged
    path = precise.copy_of(int8, tmp_path / "model")
    precise.change_graphs(path, exchange_best(precise.mean_answer(int8, pixels)))
    faults.reseal_model(path)
    wrong = verify(path, options).rungs[3]
    assert wrong.first is not None
    assert wrong.first.comparison.passed, "it is within the tolerance"
    assert wrong.verdict == "failed"
    assert "images keep their class, and 27 are needed" in str(wrong.reason)


def test_what_is_not_judged_is_said_to_be(int8: ModelBundle, pixels: Path) -> None:
    one = verify(int8.path, VerifyOptions(samples=1, npz=pixels))
    assert "top-1 is NOT JUDGED" in wording.agreement(one.rungs[3])
    noise = verify(int8.path, VerifyOptions(samples=2))
    assert wording.agreement(noise.rungs[3]).endswith("they are not judged")
