"""The page at ``/``: what it is made of, and how it shows an answer in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab
from html_pages import Page
from page_double import (
    ANSWER,
    HACK,
    SIGNATURE,
    SPANS,
    Double,
    Reply,
    answered,
    needs_browser,
    shown,
    text,
)

from parnet_deploy.bench.report.overlap import overlap
from parnet_deploy.serve.http.page import page

pytest_plugins = ["page_fixtures"]


def inline(markup: str, tag: str) -> list[str]:
    """What stands in a page's elements of one kind."""
    return re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", markup, re.DOTALL)


def read(markup: str) -> Page:
    """A page without its script; `Page` does not know of elements that have no end tag."""
    outside = re.sub(r"<script\b.*?</script>", "", markup, flags=re.DOTALL)
    return Page(outside.replace("<input", "<br").replace("<path", "<br"))


def test_the_policy_allows_its_own_script_and_style_and_nothing_else() -> None:
    made = page(SIGNATURE)
    policy = {name: values for name, *values in map(str.split, made.policy.split("; "))}
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (inside,) = inline(made.body.decode(), tag)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[directive] == [f"'sha256-{digest}'"]
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["img-src"] == ["blob:", "data:"]
    assert "unsafe" not in made.policy


def test_it_refers_to_nothing_and_has_no_handlers_in_its_markup() -> None:
    markup = page(SIGNATURE).body.decode()
    found = read(markup)
    assert found.open == []
    assert [each.partition(":")[0] for each in found.references] == ["data"]
    assert len(set(found.ids)) == len(found.ids)
    outside = re.sub(r"<(script|style)\b.*?</\1>", "", markup, flags=re.DOTALL)
    assert not re.search(r"\s(?:on\w+|style)=", outside)
    assert not re.search(r"https?://(?!HOST:PORT|www\.w3\.org/2000/svg)", markup)


def test_what_it_states_is_text_whatever_it_is() -> None:
    bad = replace(SIGNATURE, name=f"$style {HACK}", backend="</script>&amp;", precision="<b>")
    markup = page(bad).body.decode()
    for tag in ("style", "script"):
        assert inline(markup, tag) == inline(page(SIGNATURE).body.decode(), tag)
    found = read(markup)
    assert found.text.count(f"$style {HACK}") == 2
    assert "1,000 classes, images of 224x224" in found.text
    assert "</script>&amp;, <b>" in found.text


@pytest.mark.parametrize(("classes", "top"), [(2, 2), (5, 5), (6, 5)])
def test_it_asks_for_no_more_labels_than_there_are(classes: int, top: int) -> None:
    made = page(replace(SIGNATURE, labels=SIGNATURE.labels[:classes]))
    assert f'data-top="{top}"' in made.body.decode()


def test_it_is_the_same_page_for_the_same_model() -> None:
    assert page(SIGNATURE) == page(replace(SIGNATURE))
    assert page(SIGNATURE) != page(replace(SIGNATURE, name="other"))


def test_it_is_made_without_what_only_reports_need() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['jinja2', 'matplotlib', 'torch']));"
        "from parnet_deploy.serve.http import page"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_browser
def test_labels_have_their_probabilities_as_text_and_as_bars(
    tab: Tab, server: Double, photograph: Path
) -> None:
    server.replies = [Reply()]
    tab.choose("#file", photograph)
    answered(tab)
    lines = tab.run(
        "[...document.querySelectorAll('#labels li')].map((item) => ["
        "  item.children[0].innerText, item.children[1].innerText,"
        "  item.querySelector('.bar div').getBoundingClientRect().width /"
        "  item.querySelector('.bar').getBoundingClientRect().width])"
    )
    labels, shares, widths = zip(*lines, strict=True)
    assert labels == tuple(each["label"] for each in ANSWER["predictions"])
    assert shares == ("81.25 %", "12.50 %", "3.00 %", "2.00 %", "< 0.01 %")
    expected = [each["probability"] for each in ANSWER["predictions"]]
    assert widths == pytest.approx(expected, abs=0.005)


@needs_browser
def test_every_part_of_the_time_stands_beside_the_round_trip(
    tab: Tab, server: Double, photograph: Path
) -> None:
    server.replies = [Reply()]
    tab.choose("#file", photograph)
    answered(tab)
    rows = tab.run(
        "[...document.querySelectorAll('#parts tr')].map((row) => ["
        "  row.querySelector('th').firstChild.data, row.querySelector('.n').innerText,"
        "  row.querySelector('.bar div').getBoundingClientRect().width /"
        "  row.querySelector('.bar').getBoundingClientRect().width])"
    )
    parts, times, widths = zip(*rows, strict=True)
    assert parts == ("prepare", "queue", "infer", "total", "round trip")
    assert times[:4] == ("4.310", "0.0200", "1.200", "5.710")
    whole = float(times[4])
    assert whole > 0
    expected = [min(float(each) / whole, 1) for each in times]
    assert widths == pytest.approx(expected, abs=0.01)


LANES = """
[...document.querySelectorAll('#lanes tr')].map((row) => {
  const picture = row.querySelector('svg').getBoundingClientRect();
  return {
    stage: row.querySelector('th').firstChild.data,
    device: row.querySelector('small').innerText,
    took: row.querySelector('.n').innerText,
    says: row.querySelector('svg').getAttribute('aria-label'),
    boxes: [...row.querySelectorAll('rect')].map((rect) => {
      const box = rect.getBoundingClientRect();
      return [box.left - picture.left, box.right - picture.left].map((x) => x / picture.width);
    }),
    colour: getComputedStyle(row.querySelector('rect')).fill,
  };
})
"""


@needs_browser
@pytest.mark.parametrize("width", [1100, 400])
def test_the_timeline_shows_where_streams_overlap(
    tab: Tab, server: Double, photograph: Path, width: int
) -> None:
    server.replies = [Reply()]
    tab.look(width=width)
    tab.choose("#file", photograph)
    answered(tab)
    lanes = tab.run(LANES)
    assert [(each["stage"], each["device"]) for each in lanes] == [
        (span.stage, span.device) for span in SPANS
    ]
    boxes = [box for each in lanes for box in each["boxes"]]
    end = SPANS[-1].end
    expected = [(span.start / end, span.end / end) for span in SPANS]
    np.testing.assert_allclose(boxes, expected, atol=0.01)
    _, one, two, three, fusion, _ = boxes
    assert two[0] < three[0] < one[1] < three[1] < two[1]
    assert two[1] <= fusion[0] + 0.01
    colours = [each["colour"] for each in lanes]
    assert colours[0] == colours[5] not in colours[1:5]
    assert colours[1] == colours[4]
    assert len(set(colours[1:4])) == 3
    assert lanes[1]["took"] == "0.5000"
    assert lanes[1]["says"] == "0.1000 to 0.6000 ms"
    assert f"worked at the same time in {100 * overlap(SPANS):.0f} % of" in text(tab, "#overlap")
    marks = tab.run("[...document.querySelectorAll('#axis text')].map((each) => each.textContent)")
    assert marks == ["0.0", "0.5", "1.0"]


@needs_browser
def test_spans_of_one_stage_and_device_share_a_row(
    tab: Tab, server: Double, photograph: Path
) -> None:
    again = {"stage": "stream1", "device": "cuda:0", "start": 0.0009, "end": 0.001}
    elsewhere = again | {"device": "cuda:5", "start": 0.00095}
    server.replies = [Reply(body=ANSWER | {"spans": [again, elsewhere, *ANSWER["spans"]]})]
    tab.choose("#file", photograph)
    answered(tab)
    lanes = {(each["stage"], each["device"]): each for each in tab.run(LANES)}
    assert len(lanes) == len(SPANS) + 1
    assert len(lanes["stream1", "cuda:0"]["boxes"]) == 2
    assert lanes["stream1", "cuda:0"]["took"] == "0.6000"
    assert len(lanes["stream1", "cuda:5"]["boxes"]) == 1


@needs_browser
@pytest.mark.parametrize(
    ("spans", "rows"),
    [
        (None, 0),
        ([], 0),
        ([asdict(SPANS[0]), {"stage": "whole", "device": "cpu", "start": 0.0, "end": 0.0}], 2),
    ],
)
def test_a_whole_engine_says_that_it_has_no_streams(
    tab: Tab, server: Double, photograph: Path, spans: list[dict[str, Any]] | None, rows: int
) -> None:
    server.replies = [Reply(body=ANSWER | {"spans": spans})]
    tab.choose("#file", photograph)
    answered(tab)
    assert "no streams to show" in text(tab, "#overlap")
    assert "--split-streams" in text(tab, "#overlap")
    assert ("second run" in text(tab, "#overlap")) is (rows > 0)
    assert shown(tab, "#timeline") == [rows > 0]
    assert tab.run("document.querySelectorAll('#lanes tr').length") == rows
