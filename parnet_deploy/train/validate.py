"""How a network does on the test split, while it is trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from parnet_deploy.data import Samples
from parnet_deploy.errors import ImageError, TrainingError
from parnet_deploy.images import preprocess
from parnet_deploy.spec import Preprocessing
from parnet_deploy.train.processes import Processes

BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TestScore:
    """What a network gets right.

    Attributes:
        loss: mean cross-entropy.
        top1: part of the images that is right.
        top5: part whose class is among the five likeliest, or among all where there are fewer.
        images: how many could be decoded.
    """

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    loss: float
    top1: float
    top5: float
    images: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TestSplit:
    """The test split as the network reads it.

    Attributes:
        samples: its images.
        preprocessing: the same as in deployment.
        skip_bad: leave out what cannot be decoded.
        workers: processes that decode.
    """

    __test__ = False

    samples: Samples
    preprocessing: Preprocessing
    skip_bad: bool
    workers: int


def score(
    model: nn.Module,
    split: TestSplit,
    processes: Processes,
    *,
    when: str,
    failed: dict[str, str],
    stop: Callable[[], bool] = lambda: False,
) -> TestScore | None:
    """Test a network, the images being shared among the processes.

    Args:
        model: (N, 3, H, W) -> logits (N, classes); it is left in inference mode.
        split: what to test on.
        processes: who shares it.
        when: at what point of the training this is, for messages.
        failed: takes the images that could not be decoded, and why.
        stop: looked at before every batch; all stop when one wants to.

    Returns:
        The score, or None when it was stopped.

    Raises:
        ImageError: an image cannot be decoded, and bad ones are not skipped; or none can be.
        TrainingError: the loss is not finite.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    # In float32 as evaluate runs a checkpoint: TF32, which torch's convolutions have on by default,
    # would be another network than the one that is deployed.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        for images, labels in _batches(split, processes, failed):
            if _anyone(processes, stop()):
                return None
            if not len(labels):
                continue
            logits = model(images.to(processes.device)).float().cpu()
            likeliest = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            # Counted: the best epoch is chosen by it, and shares in float32 would differ in the
            # last digit where as many are right.
            right, near = int(likeliest[:, 0].sum()), int(likeliest.sum())
            sums += torch.tensor([float(loss), right, near, len(labels)], dtype=torch.float64)
    loss_sum, right, near, count = processes.sum(sums.to(processes.device)).tolist()
    if not count:
        raise ImageError(f"not one of {len(split.samples)} images of the test split can be decoded")
    if not math.isfinite(loss_sum):
        raise TrainingError(
            f"the test's loss is not finite {when}: training has come apart and was stopped; "
            "take a lower --learning-rate, or look for damaged data"
        )
    return TestScore(
        loss=loss_sum / count, top1=right / count, top5=near / count, images=round(count)
    )


def _batches(
    split: TestSplit, processes: Processes, failed: dict[str, str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(N, 3, H, W) float32 and (N,) int64, of the images that are this process's.

    All processes have as many batches, the last of which may be empty.
    """
    mine = range(processes.rank, len(split.samples), processes.count)
    loader = DataLoader(
        _Prepared(split.samples, split.preprocessing),
        batch_size=BATCH,
        sampler=mine,
        collate_fn=list,
        num_workers=split.workers,
        generator=torch.Generator(),  # of the seeds of workers; the global one is left alone
    )
    rounds = math.ceil(len(split.samples) / (processes.count * BATCH))
    for items in itertools.islice(itertools.chain(loader, itertools.repeat([])), rounds):
        good = []
        for item in items:
            if isinstance(item, _Bad):
                if not split.skip_bad:
                    raise ImageError(f"{item.why}; --skip-bad leaves such images out")
                failed[item.name] = item.why
            else:
                good.append(item)
        images, labels = zip(*good, strict=True) if good else ((), ())
        stacked = torch.stack(images) if good else torch.empty(0)
        yield stacked, torch.tensor(labels, dtype=torch.int64)


def _anyone(processes: Processes, wants: bool) -> bool:
    """Whether one of the processes wants it; it waits for all."""
    return bool(processes.sum(torch.tensor(float(wants), device=processes.device)) > 0)


@dataclass(frozen=True, slots=True)
class _Bad:
    name: str
    why: str


class _Prepared(Dataset[tuple[Tensor, int] | _Bad]):
    """Samples as the network reads them; a bad one as what is wrong with it."""

    def __init__(self, samples: Samples, preprocessing: Preprocessing) -> None:
        self._samples, self._preprocessing = samples, preprocessing

    def __getitem__(self, index: int) -> tuple[Tensor, int] | _Bad:
        try:
            pixels = preprocess(self._samples.image(index), self._preprocessing)
        except ImageError as exc:
            return _Bad(self._samples.name(index), str(exc))
        return torch.from_numpy(pixels[0]), self._samples.label(index)
