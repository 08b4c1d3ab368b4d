"""The test after every epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parnet_deploy.data import ArraySamples
from parnet_deploy.errors import ImageError, TrainingError
from parnet_deploy.images import preprocess
from parnet_deploy.train.processes import Processes
from parnet_deploy.train.validate import BATCH, TestSplit, score
from tests.test_train_loader import Bad
from tests.training import PREPROCESSING

CLASSES = 7


class Reader(nn.Module):
    """Reads its logits out of the pixels: the first of each channel's rows."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :CLASSES]


def made(n: int, kind: type[ArraySamples] = ArraySamples) -> ArraySamples:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    for image in images:  # no two classes are as likely
        image[0, 0] = rng.choice(256, 8, replace=False)
    return kind(
        images=images,
        labels=rng.integers(0, CLASSES, n),
        name="made",
    )


def split(samples: ArraySamples, **changes: object) -> TestSplit:
    whole = TestSplit(samples=samples, preprocessing=PREPROCESSING, skip_bad=False, workers=0)
    return replace(whole, **changes)  # type: ignore[arg-type]


def expected(samples: ArraySamples, places: list[int]) -> tuple[float, float, float]:
    """Loss, top-1 and top-5, image by image."""
    losses, first, near = [], 0, 0
    for place in places:
        logits = preprocess(samples.image(place), PREPROCESSING)[0, 0, 0, :CLASSES].astype(float)
        label = samples.label(place)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        rank = int((logits > logits[label]).sum())
        first, near = first + (rank == 0), near + (rank < 5)
    return float(np.mean(losses)), first / len(places), near / len(places)


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 47, 2 * BATCH + 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_counts_once(count: int, workers: int) -> None:
    samples = made(count)
    model = Reader().train()
    found = score(model, split(samples, workers=workers), Processes(), when="now", failed={})
    assert found is not None
    assert found.images == count
    loss, top1, top5 = expected(samples, list(range(count)))
    assert (found.top1, found.top5) == (top1, top5)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert not model.training


def test_bad_images_are_left_out_or_named() -> None:
    samples = made(9, Bad)
    with pytest.raises(ImageError, match=r"made\[2\] is damaged; --skip-bad"):
        score(Reader(), split(samples), Processes(), when="now", failed={})
    failed: dict[str, str] = {}
    found = score(Reader(), split(samples, skip_bad=True), Processes(), when="now", failed=failed)
    assert found is not None
    assert sorted(failed) == ["made[2]", "made[3]"]
    assert found.images == 7
    assert found.top1 == pytest.approx(expected(samples, [0, 1, 4, 5, 6, 7, 8])[1])


def test_nothing_but_bad_images_is_an_error() -> None:
    samples = made(4, Bad)
    samples.bad = frozenset(range(4))  # type: ignore[attr-defined]
    with pytest.raises(ImageError, match="not one of 4 images of the test split"):
        score(Reader(), split(samples, skip_bad=True), Processes(), when="now", failed={})


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    class Broken(Reader):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * torch.inf

    with pytest.raises(TrainingError, match="the test's loss is not finite now"):
        score(Broken(), split(made(4)), Processes(), when="now", failed={})


def test_it_can_be_stopped() -> None:
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 1)
        return asked[-1]

    assert (
        score(Reader(), split(made(3 * BATCH)), Processes(), when="now", failed={}, stop=stop)
        is None
    )
    assert len(asked) == 2


def test_it_is_float32_throughout_on_a_gpu_too() -> None:
    seen: list[bool] = []

    class Asking(Reader):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(images)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        score(Asking(), split(made(4)), Processes(), when="now", failed={})
        assert torch.backends.cudnn.allow_tf32
    assert seen == [False]
