"""The page: it shows all that was found, needs nothing else, and no name in it is markup."""

from __future__ import annotations

import re
from dataclasses import replace

import bench_results as made
import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.report import paper, plots, table, wording
from parnet_deploy.bench.report.overlap import overlap
from parnet_deploy.bench.report.page import render
from parnet_deploy.bench.report.plots_parity import parity
from parnet_deploy.bench.report.plots_timeline import timelines
from parnet_deploy.bench.result import Absence, BenchResult, Conditions, Parity
from parnet_deploy.pages.labels import Box, place
from parnet_deploy.runtime.timeline import Span

EVIL = "<b>a & $x$ 'q' _y_"


@pytest.fixture(scope="module")
def full() -> BenchResult:
    """Two networks, all kinds of contestants, and names that are no markup."""
    second = made.outcome("wide", 20.0, network="xl", schedule="whole", parity=None)
    evil = made.outcome(
        EVIL,
        8.0,
        schedule="split",
        devices=("cuda:0", "cuda:1"),
        timeline=made.timeline(),
        parity=Parity(max_abs=1.0, max_rel=0.0, same_top1=3, images=64),
        warnings=("<i>hot</i>",),
    )
    found = made.result(
        *made.contest().outcomes,
        evil,
        second,
        absent=[Absence(name="<u>gone", network="l", reason="no <script>")],
        title="<em>title",
        command="parnet-deploy bench '<engine>'",
        conditions=Conditions(
            hardware=(made.CPU, made.GPU, made.GPU),
            versions={"onnxruntime": "1.31.0"},
            observations=("41 C & rising",),
            warnings=("others took 9 %",),
        ),
    )
    return replace(found, verdict=wording.sentences(found))


@pytest.fixture(scope="module")
def text(full: BenchResult) -> str:
    return render(full, paper.sheets(full))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_it_needs_nothing_else(text: str, page: Page) -> None:
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_it_shows_every_sentence_and_figure(full: BenchResult, page: Page) -> None:
    for sentence in full.verdict:
        if "did not take part" not in sentence:
            assert sentence.partition(": ")[2][1:] in page.text
    for sheet in (*table.sheets(full), *paper.sheets(full)):
        assert sheet.title in page.text
        for row in sheet.rows:
            for cell in row:
                assert cell in page.text
        for note in sheet.notes:
            assert note in page.text


def test_it_shows_what_it_holds_for(full: BenchResult, page: Page) -> None:
    for part in (
        full.command,
        "AMD EPYC, 2 threads; 2 NVIDIA H200",
        "onnxruntime 1.31.0",
        "41 C & rising",
        "others took 9 %",
        "12 interleaved rounds",
        "2026-12-01 10:00 UTC",
    ):
        assert part in page.text


def test_it_names_the_absent_once_with_their_reasons(page: Page) -> None:
    assert page.text.count("no <script>") == 1
    assert "l: <u>gone" in page.text


def test_names_are_text(text: str, page: Page) -> None:
    for markup in ("<b>a", "<i>hot", "<u>gone", "<em>title", "<engine>"):
        assert markup not in text
        assert markup in page.text
    # In the table, and above the rows of three plots.
    assert page.text.count(EVIL) >= 5


def test_every_network_has_its_plots(text: str) -> None:
    # Latency, parity, timeline and stability of l; of xl, which ran alone, its latency only.
    assert text.count("<svg") == 5
    assert text.count("Parity beside latency</b>") == 1
    assert text.count("Stability</b>") == 1


def test_it_is_readable_in_the_dark_and_on_a_telephone(text: str) -> None:
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "#010203" not in svg
    assert re.search(r"<svg[^>]* width=", svg) is None


def test_a_single_contestant_makes_a_page() -> None:
    found = made.result(made.outcome("only", parity=None))
    page = Page(render(replace(found, verdict=wording.sentences(found))))
    assert page.open == []
    assert "'only' (ours, fp32) has nothing to be compared with" in page.text


def test_plots_without_anything_to_draw_are_not_drawn() -> None:
    outcomes = [made.outcome("a", parity=None)]
    assert parity("l", outcomes) is None
    assert timelines("l", outcomes) is None


def test_latencies_that_are_all_equal_are_drawn() -> None:
    drawn = plots.latencies("l", [made.outcome("flat", rounds=((5.0,) * 3,) * 2)])
    assert "5.000, p99 5.000" in drawn


def test_a_round_far_from_the_others_is_drawn_at_the_edge() -> None:
    jumpy = made.outcome("jumpy", rounds=((1.0,),) * 6 + ((9.0,),))
    calm = made.outcome("calm", rounds=((1.0,),) * 7)
    drawn = plots.rounds("l", [calm, jumpy], calm, processes=3)
    assert "a row is 20 % high" in drawn
    assert "1.000 (1.000-1.000)" in drawn


def test_the_timeline_has_a_lane_for_each_stage_and_says_how_much_overlaps() -> None:
    drawn = timelines("l", [made.outcome("split", timeline=made.timeline())])
    assert drawn is not None
    for span in made.timeline():
        assert f">{span.stage}<" in drawn
    assert "split: stages overlap in 57 %" in drawn
    assert ">copies<" in drawn


def test_a_timeline_without_copies_does_not_explain_them() -> None:
    drawn = timelines("l", [made.outcome("whole", timeline=tuple(spans((0.0, 1.0))))])
    assert drawn is not None
    assert ">cpu<" in drawn
    assert "copies" not in drawn


def spans(*times: tuple[float, float]) -> list[Span]:
    return [
        Span(stage=str(i), device="cpu", start=start, end=end)
        for i, (start, end) in enumerate(times)
    ]


@pytest.mark.parametrize(
    ("times", "share"),
    [
        ((), 0.0),
        (((0.0, 1.0),), 0.0),
        (((0.0, 1.0), (1.0, 2.0)), 0.0),
        (((0.0, 1.0), (0.0, 1.0)), 1.0),
        (((0.0, 3.0), (1.0, 2.0), (1.0, 2.0)), 1 / 3),
        (((0.0, 1.0), (0.5, 1.0), (1.0, 2.0)), 0.25),
    ],
)
def test_overlap_is_the_share_in_which_several_stages_work(
    times: tuple[tuple[float, float], ...], share: float
) -> None:
    assert overlap(spans(*times)) == pytest.approx(share)


def test_copies_are_no_stages() -> None:
    upload = Span(stage="upload", device="cpu", start=0.0, end=1.0)
    assert overlap([upload, *spans((0.0, 1.0))]) == 0.0


@given(low=st.floats(1e-3, 1e2), factor=st.floats(1.5, 1e3))
def test_ticks_are_short_numbers_inside_the_axis(low: float, factor: float) -> None:
    ticks = plots.short_numbers(low, low * factor)
    assert len(ticks) >= 3
    assert all(0.99 * low <= tick <= 1.01 * low * factor for tick in ticks)
    assert ticks == sorted(set(ticks))
    assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 2 for tick in ticks)


POINTS = st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), min_size=1, max_size=12)


@given(points=POINTS, width=st.floats(20, 90))
def test_labels_hide_neither_each_other_nor_points(
    points: list[tuple[float, float]], width: float
) -> None:
    bounds = Box(0, 0, 400, 300)
    boxes = [b for b in place(points, [(width, 10)] * len(points), bounds, gap=6) if b]
    for number, box in enumerate(boxes):
        assert box.inside(bounds)
        assert not any(box.touches(other) for other in boxes[:number])
        assert not any(box.left < x < box.right and box.bottom < y < box.top for x, y in points)


def test_a_label_without_room_is_left_out() -> None:
    assert place([(5.0, 5.0)], [(50.0, 5.0)], Box(0, 0, 10, 10), gap=2) == [None]
    (box,) = place([(5.0, 5.0)], [(20.0, 5.0)], Box(0, 0, 100, 10), gap=2)
    assert box is not None
    assert box.left == pytest.approx(5 + 2 / 1.5)


def test_long_names_keep_both_ends() -> None:
    assert plots.shorten("short", 8) == "short"
    assert plots.shorten("a-very-long-name", 8) == "a-ve…ame"
