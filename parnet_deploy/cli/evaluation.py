"""An evaluation, as people see it: how far it is, and what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from parnet_deploy.cli.console import Justify, console, errors, new_table, print_table, say, tell
from parnet_deploy.cli.counting import EVERY, bar

if TYPE_CHECKING:
    from parnet_deploy.evaluate import Evaluation, Progress
    from parnet_deploy.evaluate.measures import Share
    from parnet_deploy.evaluate.result import ClassResult

WHOLE_TABLE = 20
"""Up to so many classes all are shown; else the worst."""

WORST = 5

PROBLEMS = 5
"""So many images that were left out are named."""


@contextmanager
def reporting() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on a terminal, a line every few seconds elsewhere."""
    if not errors.is_terminal:
        yield _lines()
        return
    with bar("evaluating", errors) as count:
        yield lambda at: count(_describe(at), at.done, at.total)


def _lines() -> Callable[[Progress], None]:
    last = time.monotonic()

    def report(at: Progress) -> None:
        nonlocal last
        if (now := time.monotonic()) - last < EVERY:
            return
        last = now
        left = (at.total - at.done) * at.seconds / at.done
        tell(f"  {at.done} of {at.total} images: {_describe(at)}, {left:.0f} s left")

    return report


def _describe(at: Progress) -> str:
    answered = at.done - at.skipped
    skipped = f", {at.skipped} skipped" if at.skipped else ""
    return f"{at.right / answered:.1%} right, {at.images_per_second:.0f} images/s{skipped}"


def print_evaluation(found: Evaluation) -> None:
    """Print what was evaluated, the figures, and the classes."""
    say(f"{found.path}: {found.network}, {found.precision}; {found.runs_on}")
    say(f"on {_data_words(found)}")
    say(f"{_image_words(found)}\n")
    print_table(_figures(found))
    measures = found.measures
    if len(measures.classes) <= WHOLE_TABLE:
        console.print()
        print_table(_class_table(None, measures.classes))
    elif worst := measures.worst[:WORST]:
        console.print()
        print_table(_class_table("the least recognised classes", worst))
    for problem in found.skipped[:PROBLEMS]:
        tell(f"skipped: {problem.error}")
    if len(found.skipped) > PROBLEMS:
        tell(f"skipped: {len(found.skipped) - PROBLEMS} more; --json lists all")


def _data_words(found: Evaluation) -> str:
    run = found.measures.top1.images + len(found.skipped)
    taken = "" if run == found.available else f"{run} of "
    classes = len(found.measures.classes)
    return (
        f"{found.data}, {found.split} split: {taken}{found.available} images; "
        f"{classes} classes, matched by {found.matching}"
    )


def _image_words(found: Evaluation) -> str:
    how = found.preprocessing
    height, width = how.size
    crops = "the centre" if found.crops == "centre" else "ten crops, averaged,"
    of = "x".join(str(round(side / how.crop_ratio)) for side in how.size)
    whose = "the network's own" if found.own_preprocessing else "ImageNet's, as it names none"
    return (
        f"{crops} of {height}x{width} out of {of}, {how.interpolation}; mean and deviation are "
        f"{whose}; batch {found.batch}"
    )


def _figures(found: Evaluation) -> Table:
    measures = found.measures
    columns: dict[str, Justify] = {
        "top-1": "right",
        "95 % interval": "right",
        f"top-{measures.k}": "right",
        "loss": "right",
        "images": "right",
        "skipped": "right",
        "images/s": "right",
    }
    table = new_table(None, columns)
    table.add_row(
        f"{measures.top1.percent:.2f} %",
        _interval(measures.top1),
        f"{measures.topk.percent:.2f} %",
        f"{measures.loss:.4f}",
        str(measures.top1.images),
        str(len(found.skipped)),
        f"{found.images_per_second:.0f}",
    )
    return table


def _interval(share: Share) -> str:
    return f"{share.low:.2f} to {share.high:.2f} %"


def _class_table(title: str | None, classes: Iterable[ClassResult]) -> Table:
    columns: dict[str, Justify] = {
        "class": "left",
        "images": "right",
        "right": "right",
        "share": "right",
        "most often taken for": "left",
    }
    table = new_table(title, columns)
    for result in classes:
        mistake = result.taken_for
        table.add_row(
            escape(result.label),
            str(result.images),
            str(result.right),
            "-" if result.percent is None else f"{result.percent:.1f} %",
            "" if mistake is None else f"{escape(mistake.label)} ({mistake.images})",
        )
    return table
