"""A data set's split through a network, counted."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from parnet_deploy.data import Part, Split, match_labels
from parnet_deploy.evaluate.answers import measure
from parnet_deploy.evaluate.measures import Share
from parnet_deploy.evaluate.result import Evaluation
from parnet_deploy.evaluate.running import Options, Outcome, Progress, answer
from parnet_deploy.evaluate.subject import Subject


def evaluate(
    subject: Subject,
    split: Split,
    part: Part,
    options: Options | None = None,
    *,
    minimum: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Evaluation, Outcome]:
    """Run a split's images through a network, and count what it gets right.

    Args:
        subject: the network; its batches are run as large as they may be.
        split: the images.
        part: which split it is.
        options: how.
        minimum: share of images in percent that must be recognised, or None.
        progress: told after every batch.

    Returns:
        What was counted, and the answers that it was counted of.

    Raises:
        DataError: the split is empty, or has classes that the network does not know.
        ImageError: an image cannot be used; see `answer`.
        RunnerError: a run failed, or gave values that are not finite.
    """
    options = options or Options()
    match = match_labels(split.labels, subject.labels)
    outcome = answer(subject, split.samples, match.logits, options, progress=progress)
    measures = measure(outcome.answers, subject.labels)
    evaluation = Evaluation(
        kind=subject.kind,
        path=str(subject.path),
        sha256=subject.sha256,
        network=subject.spec.name,
        runs_on=subject.runs_on,
        precision=subject.precision,
        data=split.name,
        split=part,
        matching="order" if match.warning else "name",
        preprocessing=subject.preprocessing,
        own_preprocessing=subject.own_preprocessing,
        crops=options.crops,
        batch=subject.batch.max,
        available=len(split.samples),
        skipped=outcome.skipped,
        measures=measures,
        seconds=outcome.seconds,
        images_per_second=measures.top1.images / outcome.seconds,
        minimum=minimum,
        passed=None if minimum is None else reaches(measures.top1, minimum),
        warnings=_warnings(subject, split, match.warning, options),
    )
    return evaluation, outcome


def reaches(share: Share, percent: float) -> bool:
    """Whether a share is at least so many percent, exactly: 985 of 1000 are 98.5 %."""
    return Fraction(100 * share.right, share.images) >= Fraction(str(percent))


def _warnings(subject: Subject, split: Split, by_order: str, options: Options) -> tuple[str, ...]:
    found = [*subject.warnings]
    if by_order:
        found.append(by_order)
    if split.empty:
        found.append(f"no image of {', '.join(split.empty)}: nothing is said of these classes")
    if options.crops == "ten" and subject.preprocessing.crop_ratio == 1.0:
        found.append(
            "with a crop ratio of 1, the ten crops of a square image are two: it and its mirror "
            "image; --crop-ratio 0.875 leaves a margin"
        )
    return tuple(found)
