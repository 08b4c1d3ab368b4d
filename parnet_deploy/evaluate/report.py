"""The result, written: JSON for programs, tables for spreadsheets, a picture for people."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from parnet_deploy.data import Samples
from parnet_deploy.evaluate.answers import Answers
from parnet_deploy.evaluate.measures import confusion
from parnet_deploy.evaluate.result import Evaluation
from parnet_deploy.spec import encode

JSON_FILE = "evaluation.json"
CLASSES_FILE = "classes.csv"
CONFUSION_FILE = "confusion.csv"
IMAGES_FILE = "images.csv"
PICTURE_FILE = "confusion.svg"


def write_report(folder: Path, found: Evaluation, answers: Answers, samples: Samples) -> None:
    """Write everything into a folder that is there and empty.

    ``evaluation.json``; ``classes.csv``, a row per class; ``confusion.csv``, a row per true class
    and a column per predicted class; ``images.csv``, a row per image, so that two evaluations can
    be compared image by image; ``confusion.svg`` where there are few enough classes.

    Args:
        folder: where to.
        found: what was counted.
        answers: of what it was counted.
        samples: the images.

    Raises:
        OSError: something cannot be written.
    """
    labels = [result.label for result in found.measures.classes]
    (folder / JSON_FILE).write_bytes(encode(found))
    _write_table(folder / CLASSES_FILE, _class_rows(found))
    _write_table(folder / CONFUSION_FILE, _confusion_rows(answers, labels))
    _write_table(folder / IMAGES_FILE, _image_rows(answers, samples, labels))
    if found.measures.confusion is not None:
        from parnet_deploy.evaluate.picture import draw

        (folder / PICTURE_FILE).write_text(draw(found), encoding="utf-8")


def _class_rows(found: Evaluation) -> Iterable[Sequence[object]]:
    yield "index", "label", "images", "right", "percent", "taken_for", "taken_for_images"
    for result in found.measures.classes:
        mistake = result.taken_for
        yield (
            result.index,
            result.label,
            result.images,
            result.right,
            "" if result.percent is None else f"{result.percent:.4f}",
            mistake.label if mistake else "",
            mistake.images if mistake else "",
        )


def _confusion_rows(answers: Answers, labels: Sequence[str]) -> Iterable[Sequence[object]]:
    yield "true \\ predicted", *labels
    matrix = confusion(answers.targets, answers.predicted, len(labels))
    for label, row in zip(labels, matrix.tolist(), strict=True):
        yield label, *row


def _image_rows(
    answers: Answers, samples: Samples, labels: Sequence[str]
) -> Iterable[Sequence[object]]:
    yield "image", "true", "predicted", "probability", "rank", "loss"
    columns = (
        answers.places,
        answers.targets,
        answers.predicted,
        answers.chances,
        answers.ranks,
        answers.losses,
    )
    for place, true, predicted, chance, rank, loss in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        name = samples.name(place)
        yield name, labels[true], labels[predicted], f"{chance:.6g}", rank + 1, f"{loss:.6g}"


def _write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
