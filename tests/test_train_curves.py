"""The picture of a training: what is in it, whatever the training was like."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from parnet_deploy.errors import TrainingError
from parnet_deploy.train import curves
from parnet_deploy.train.curves import draw_curves
from parnet_deploy.train.metrics import EpochMetrics

TITLE = "parnet-s on imagefolder:<photos> & more"


def history_of(epochs: int, **changes: Any) -> list[EpochMetrics]:
    """Losses that fall, accuracies that rise, a rate that goes down tenfold at every quarter."""
    return [
        replace(
            EpochMetrics(
                epoch=epoch,
                step=epoch * 10,
                learning_rate=0.8 * 0.1 ** min(3, 4 * (epoch - 1) // epochs),
                train_loss=1.0 + 5.0 / epoch,
                train_top1=0.7 - 0.5 / epoch,
                test_loss=0.9 + 5.0 / epoch,
                test_top1=0.8 - 0.5 / epoch,
                test_top5=0.9 - 0.3 / epoch,
                test_images=10,
                seconds=1.0,
                images_per_second=10.0,
            ),
            **changes,
        )
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn."""
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            drawn.append(self)

    monkeypatch.setattr(curves, "Figure", Kept)
    return drawn


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """Every line of a picture by its panel and name."""
    return {
        f"{axes.get_ylabel()}: {line.get_label()}": (
            list(map(float, line.get_xdata())),
            list(map(float, line.get_ydata())),
        )
        for axes in figure.axes
        for line in axes.lines
    }


@pytest.mark.parametrize("epochs", [1, 2, 15, 400])
def test_every_number_is_in_the_picture(tmp_path: Path, figures: list[Figure], epochs: int) -> None:
    history = history_of(epochs)
    draw_curves(history, tmp_path / "curves.svg", TITLE)
    (figure,) = figures
    found = lines(figure)
    numbers = list(map(float, range(1, epochs + 1)))
    expected = {
        "loss: train": "train_loss",
        "loss: test": "test_loss",
        "accuracy: train, top-1": "train_top1",
        "accuracy: test, top-1": "test_top1",
        "accuracy: test, top-5": "test_top5",
        "learning rate: learning rate": "learning_rate",
    }
    best = f"accuracy: best: {history[-1].test_top1:.2%} (epoch {epochs})"
    assert found.keys() == {*expected, best}
    for name, field in expected.items():
        assert found[name] == (numbers, [getattr(epoch, field) for epoch in history])
    assert found[best] == ([float(epochs)], [history[-1].test_top1])


@pytest.mark.parametrize("epochs", [1, 2, 7, 400])
def test_all_of_it_is_inside_its_panel_over_whole_epochs(
    tmp_path: Path, figures: list[Figure], epochs: int
) -> None:
    draw_curves(history_of(epochs), tmp_path / "curves.svg", TITLE)
    for axes in figures[0].axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            assert all(left < x < right for x in line.get_xdata())
            assert all(low <= y <= high for y in line.get_ydata()), axes.get_ylabel()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert 1 <= len(ticks) <= 12
    assert all(tick == round(tick) for tick in ticks)


def test_markers_are_left_out_where_they_would_touch(tmp_path: Path, figures: list[Figure]) -> None:
    for epochs in (1, curves.MARKED_EPOCHS, curves.MARKED_EPOCHS + 1):
        draw_curves(history_of(epochs), tmp_path / "curves.svg", TITLE)
    markers = [figure.axes[0].lines[0].get_marker() for figure in figures]
    assert markers == ["o", "o", ""]


def test_the_first_of_equal_epochs_is_the_best(tmp_path: Path, figures: list[Figure]) -> None:
    draw_curves(history_of(3, test_top1=0.5), tmp_path / "curves.svg", TITLE)
    assert "accuracy: best: 50.00% (epoch 1)" in lines(figures[0])


def test_a_rate_of_steps_is_logarithmic_and_a_cosine_is_not(
    tmp_path: Path, figures: list[Figure]
) -> None:
    def cosine(epochs: int) -> list[EpochMetrics]:
        return [
            replace(epoch, learning_rate=0.05 * (1.0001 + math.cos(math.pi * epoch.epoch / epochs)))
            for epoch in history_of(epochs)
        ]

    warm = [replace(history_of(1)[0], learning_rate=0.16), *history_of(20)[1:]]
    constant = history_of(5, learning_rate=0.1)
    for history in (history_of(120), warm, cosine(120), cosine(3), constant):
        draw_curves(history, tmp_path / "curves.svg", TITLE)
    scales = [figure.axes[2].get_yscale() for figure in figures]
    assert scales == ["log", "log", "linear", "linear", "linear"]


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path, figures: list[Figure]) -> None:
    history = history_of(4)
    history[1] = replace(history[1], test_loss=math.inf)
    history[2] = replace(history[2], test_loss=math.nan)
    draw_curves(history, tmp_path / "curves.svg", TITLE)
    assert figures[0].axes[0].get_ylim()[1] == pytest.approx(1.05 * history[0].train_loss)


def test_it_is_svg_with_a_title_and_no_date(tmp_path: Path) -> None:
    draw_curves(history_of(3), tmp_path / "curves.svg", TITLE)
    text = (tmp_path / "curves.svg").read_text()
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    title = root.find(".//{http://purl.org/dc/elements/1.1/}title")
    assert title is not None
    assert title.text == TITLE
    assert not re.search(r"\b20\d\d-\d\d-\d\d", text)


def test_equal_trainings_give_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.svg", "b.svg", "c.svg")]
    draw_curves(history_of(20), paths[0], TITLE)
    with mpl.rc_context({"svg.hashsalt": None}):  # whatever the program around it has set
        draw_curves(history_of(20), paths[1], TITLE)
    draw_curves(history_of(21), paths[2], TITLE)
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second
    assert first != other


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot write .*curves\.svg: No such file"):
        draw_curves(history_of(1), tmp_path / "gone" / "curves.svg", TITLE)
