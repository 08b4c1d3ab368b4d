"""Any number of images through runners that take other numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime import FunctionRunner, run_batches
from parnet_deploy.spec import Array, TensorSpec


def summing(batch: BatchRange, sizes: list[int]) -> FunctionRunner:
    """Gives every image's sum and greatest value, and refuses batches out of range."""

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        images = feeds["images"]
        assert batch.min <= len(images) <= batch.max
        sizes.append(len(images))
        flat = images.reshape(len(images), -1)
        return {"logits": np.stack([flat.sum(1), flat.max(1)], axis=1)}

    return FunctionRunner(
        run,
        inputs=(TensorSpec(name="images", shape=(batch.axis, 3, 2, 2), dtype="float32"),),
        outputs=(TensorSpec(name="logits", shape=(batch.axis, 2), dtype="float32"),),
    )


@given(count=st.integers(1, 20), bounds=st.lists(st.integers(1, 8), min_size=3, max_size=3))
def test_every_image_gets_its_own_answer(count: int, bounds: list[int]) -> None:
    low, best, high = sorted(bounds)
    batch, sizes = BatchRange(min=low, opt=best, max=high), list[int]()
    images = np.random.default_rng(count).random((count, 3, 2, 2), dtype=np.float32)
    answers = run_batches(summing(batch, sizes), images, batch)
    assert answers.shape == (count, 2)
    assert np.allclose(answers[:, 0], images.sum((1, 2, 3)))
    assert np.array_equal(answers[:, 1], images.max((1, 2, 3)))
    assert len(sizes) == -(-count // high)  # no more runs than needed


def test_several_outputs_are_refused() -> None:
    runner = summing(BatchRange(), [])
    runner.outputs = runner.outputs * 2
    with pytest.raises(RunnerError, match="one input and one output"):
        run_batches(runner, np.zeros((1, 3, 2, 2), np.float32), BatchRange())


def test_no_image_is_refused() -> None:
    with pytest.raises(RunnerError, match="at least one image"):
        run_batches(summing(BatchRange(), []), np.zeros((0, 3, 2, 2), np.float32), BatchRange())
