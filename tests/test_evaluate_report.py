"""What is written: JSON, tables, and a picture."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parnet_deploy.data import ArraySamples
from parnet_deploy.evaluate import Answers, Evaluation, measure
from parnet_deploy.evaluate.answers import answers_of
from parnet_deploy.evaluate.picture import draw
from parnet_deploy.evaluate.report import write_report
from parnet_deploy.spec import Preprocessing, decode

LABELS = ("ash", "beech, red", "$x$ <oak>")


def found_of(labels: tuple[str, ...], answers: Answers) -> Evaluation:
    return Evaluation(
        kind="engine",
        path="engines/a",
        sha256="0" * 64,
        network="tiny",
        runs_on="a double",
        precision="fp32",
        data="imagefolder:/a/rather/long/path/to/the/images",
        split="test",
        matching="name",
        preprocessing=Preprocessing(size=(32, 32)),
        own_preprocessing=True,
        crops="centre",
        batch=1,
        available=4,
        skipped=(),
        measures=measure(answers, labels),
        seconds=0.5,
        images_per_second=8.0,
    )


@pytest.fixture
def answers() -> Answers:
    """Of 4 images one is wrong: an ash that is taken for a beech; there is no oak."""
    rows = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2]])
    return answers_of([0, 1, 3, 4], [0, 0, 1, 1], rows)


@pytest.fixture
def samples() -> ArraySamples:
    return ArraySamples(np.zeros((5, 3, 4, 4), np.uint8), np.array([0, 0, 2, 1, 1]), "trees")


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_everything_is_written(answers: Answers, samples: ArraySamples, tmp_path: Path) -> None:
    found = found_of(LABELS, answers)
    write_report(tmp_path, found, answers, samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classes.csv", "confusion.csv", "confusion.svg", "evaluation.json", "images.csv",
    ]  # fmt: skip
    assert decode((tmp_path / "evaluation.json").read_bytes(), Evaluation) == found
    assert rows(tmp_path / "classes.csv")[1:] == [
        ["0", "ash", "2", "1", "50.0000", "beech, red", "1"],
        ["1", "beech, red", "2", "2", "100.0000", "", ""],
        ["2", "$x$ <oak>", "0", "0", "", "", ""],
    ]
    assert rows(tmp_path / "confusion.csv")[1:] == [
        ["ash", "1", "1", "0"],
        ["beech, red", "0", "2", "0"],
        ["$x$ <oak>", "0", "0", "0"],
    ]
    assert rows(tmp_path / "images.csv") == [
        ["image", "true", "predicted", "probability", "rank", "loss"],
        ["trees[0]", "ash", "ash", "0.8", "1", "0.223144"],
        ["trees[1]", "ash", "beech, red", "0.6", "2", "1.20397"],
        ["trees[3]", "beech, red", "beech, red", "0.8", "1", "0.223144"],
        ["trees[4]", "beech, red", "beech, red", "0.6", "1", "0.510826"],
    ]


def test_many_classes_have_tables_and_no_picture(tmp_path: Path) -> None:
    labels = tuple(f"class {index}" for index in range(60))
    answers = answers_of(range(60), range(60), np.eye(60))
    samples = ArraySamples(np.zeros((60, 3, 4, 4), np.uint8), np.arange(60), "many")
    found = found_of(labels, answers)
    write_report(tmp_path, found, answers, samples)
    assert not (tmp_path / "confusion.svg").exists()
    assert json.loads((tmp_path / "evaluation.json").read_text())["measures"]["confusion"] is None
    table = rows(tmp_path / "confusion.csv")
    assert len(table) == len(table[0]) == 61
    with pytest.raises(ValueError, match="no confusion matrix"):
        draw(found)


# --- the picture --------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    """What is written in it; each figure stands in an element of its own."""
    return [
        "".join(element.itertext()).strip()
        for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_picture_says_what_was_counted(answers: Answers) -> None:
    shown = texts(draw(found_of(LABELS, answers)))
    assert shown.count("ash") == shown.count("beech, red") == shown.count("$x$ <oak>") == 2
    assert sorted(text for text in shown if text.isdigit()) == ["1", "1", "2"], "no figure for 0"
    assert [text for text in shown if re.fullmatch(r"\d+ %", text)] == ["50 %", "100 %"]
    assert "true class" in shown
    assert "predicted class" in shown
    assert "75.00 % of 4 images right" in shown
    assert any(text.endswith("the/images, test split") for text in shown)


def test_a_row_is_a_true_class_and_a_column_a_predicted_one(answers: Answers) -> None:
    """The figure of the mistake stands in the first row, second column: right of the first."""
    svg = draw(found_of(LABELS, answers))
    places = {}
    for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        text = "".join(element.itertext()).strip()
        if text.isdigit():
            x, y = (
                re.search(r"translate\(([\d.]+) ([\d.]+)\)", element.get("transform", ""))
                or re.search(r"([\d.]+) ([\d.]+)", f"{element.get('x')} {element.get('y')}")
            ).groups()  # type: ignore[union-attr]
            places.setdefault(text, []).append((float(x), float(y)))
    (first, second), (both,) = sorted(places["1"]), places["2"]
    assert first[1] == pytest.approx(second[1]), "both ashes in one row"
    assert first[0] < second[0]
    assert both[0] == pytest.approx(second[0]), "both kinds of trees taken for beeches in a column"
    assert both[1] > second[1]


def test_the_same_matrix_is_the_same_picture(answers: Answers) -> None:
    found = found_of(LABELS, answers)
    assert draw(found) == draw(replace(found, created="later"))


def test_names_in_letters_that_no_font_here_has(answers: Answers) -> None:
    labels = ("灰", "a name that is so long that it cannot all stand there: beech", "oak")
    shown = texts(draw(found_of(labels, answers)))
    assert shown.count("灰") == 2
    assert not any("beech" in text and len(text) > 24 for text in shown)
    assert sum(text.startswith("a name that") and text.endswith("beech") for text in shown) == 2
