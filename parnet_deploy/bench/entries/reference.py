"""What is right: the training form's logits in float64, and how near an answer is to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parnet_deploy.bench.entries.images import read_images
from parnet_deploy.bench.result import Parity
from parnet_deploy.bundle import CHECKPOINT
from parnet_deploy.errors import UsageError, os_reason
from parnet_deploy.runtime.outputs import softmax_rows, unresponsive
from parnet_deploy.spec import Array
from parnet_deploy.verify.tolerances import FLOAT32


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Whose answers are wanted.

    Attributes:
        model: folder of the model bundle.
        images: the file that `bench.images.write_images` wrote.
        count: how many of its images, from the first.
        answers: the ``.npy`` file to write.
    """

    model: str
    images: str
    count: int
    answers: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Where the answers are: float64 logits (count, classes)."""

    path: str


def answer_question(question: Question) -> Answers:
    """Compute the logits in float64, image by image, and write them.

    Raises:
        CheckpointError: the weights cannot be read.
        UsageError: there are fewer images, or the answers cannot be written.
    """
    images = read_images(Path(question.images), "float32")
    if not 1 <= question.count <= len(images):
        raise UsageError(f"{question.count} images are asked for, and there are {len(images)}")
    import torch

    from parnet_deploy.net import load_checkpoint

    model = load_checkpoint(Path(question.model) / CHECKPOINT).model.double().eval()
    with torch.inference_mode():
        logits = [
            model(torch.from_numpy(images[n : n + 1]).double()).numpy()
            for n in range(question.count)
        ]
    try:
        np.save(question.answers, np.concatenate(logits))
    except OSError as exc:
        raise UsageError(f"cannot write {question.answers}: {os_reason(exc)}") from exc
    return Answers(path=question.answers)


def read_answers(path: Path) -> Array | None:
    """Answers that a process wrote, or None where it wrote none that can be read."""
    try:
        answers: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return answers


def compare_answers(
    answer: Array | None,
    reference: Array,
    *,
    softmax: bool = False,
    labels: Array | None = None,
    tolerance: float = FLOAT32,
) -> Parity:
    """How near an answer is to what is right.

    An answer that is missing, of another shape or not finite is infinitely far from it.

    Args:
        answer: logits, or probabilities, (N, classes); None where there is none.
        reference: logits in float64 (N, classes).
        softmax: the answer is probabilities.
        labels: the images' classes (N,), where they are known.
        tolerance: greatest relative error with which an answer counts as right. Where it is wide,
            answers must follow the images, too: one answer to all of them may be within it.
    """
    wanted = softmax_rows(reference) if softmax else reference
    images = len(wanted)
    if answer is None or answer.shape != wanted.shape or answer.dtype.kind != "f":
        return Parity(max_abs=math.inf, max_rel=math.inf, same_top1=0, images=images)
    given = answer.astype(np.float64)
    finite = np.isfinite(given).all(axis=1)
    top1 = np.where(np.isfinite(given), given, 0).argmax(1)
    same = finite & (top1 == wanted.argmax(1))
    worst = float(np.abs(given - wanted).max()) if finite.all() else math.inf
    greatest = float(np.abs(wanted).max())
    relative = worst / greatest if greatest else (math.inf if worst else 0.0)
    found = Parity(
        max_abs=worst,
        max_rel=relative,
        same_top1=int(same.sum()),
        images=images,
        blind=(unresponsive(wanted, given, tolerance, softmax=softmax) if finite.all() else None),
    )
    if labels is None:
        return found
    right, most = int((finite & (top1 == labels)).sum()), int((wanted.argmax(1) == labels).sum())
    return replace(found, right=right, reference_right=most)
