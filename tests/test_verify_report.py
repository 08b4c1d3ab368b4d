"""The report: what is written says what was found, and needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import verify_faults as faults
from html_pages import Page

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.errors import VerificationError
from parnet_deploy.spec import decode
from parnet_deploy.verify import compare, report, wording
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.page import render
from parnet_deploy.verify.report import JSON_FILE, PAGE_FILE, write_report
from parnet_deploy.verify.result import Verification
from parnet_deploy.verify.verifying import verify

QUICK = VerifyOptions(samples=2)


@pytest.fixture(scope="module")
def good(tiny_bundle: ModelBundle) -> Verification:
    return verify(tiny_bundle.path, QUICK)


@pytest.fixture(scope="module")
def bad(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Verification:
    path = tmp_path_factory.mktemp("models") / "<b>bad"
    faults.copy_model(tiny_bundle, path)
    faults.non_finite(float("nan"))(path)
    return verify(path, QUICK)


@pytest.fixture(scope="module")
def good_page(good: Verification) -> str:
    return render(good)


@pytest.fixture(scope="module")
def bad_page(bad: Verification) -> str:
    return render(bad)


@pytest.fixture
def drawn_at_once(good_page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not the page that counts, it need not be drawn again."""
    monkeypatch.setattr(report, "render", lambda verification: good_page)


def test_the_json_says_all_that_was_found(
    good: Verification, bad: Verification, tmp_path: Path, drawn_at_once: None
) -> None:
    for found in (good, bad):
        path, _ = write_report(found, tmp_path)
        assert decode(path.read_bytes(), Verification) == found
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_the_page_needs_nothing_else(good_page: str, bad_page: str) -> None:
    for text in (good_page, bad_page):
        page = Page(text)
        assert page.open == []
        assert all(reference.startswith("#") for reference in page.references)
        assert {reference[1:] for reference in page.references} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        assert "<script" not in text
        assert not re.search(r"@import|url\((?!#)", text)
        assert text.count("<svg") == 2


def test_the_page_shows_every_rung_figure_and_probe(good: Verification, good_page: str) -> None:
    page = Page(good_page)
    assert "passed" in page.text
    for rung in good.rungs:
        assert rung.name in page.text
        assert rung.what in page.text
    for rung in good.rungs[1:5]:
        assert rung.first is not None
        assert wording.figure(rung.first.comparison.max_rel) in page.text
        for error in rung.first.blocks:
            assert error.block in page.text
    for probe in good.probes:
        assert probe.name in page.text
        assert probe.detail in page.text
    assert "no split engine was given" in page.text


def test_the_page_shows_what_failed_and_where(bad: Verification, bad_page: str) -> None:
    page = Page(bad_page)
    assert "FAILED" in page.text
    assert "stream2_block2 (skip block): its output is not finite" in page.text
    assert bad.bundle in page.text
    assert "<b>bad" not in bad_page  # names are text, not markup


def test_the_page_is_readable_in_the_dark(good_page: str) -> None:
    text = good_page
    assert "prefers-color-scheme: dark" in text
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "#010203" not in svg
    assert re.search(r"<svg[^>]* width=", svg) is None


def test_a_report_replaces_the_one_before_and_leaves_nothing_beside_it(
    good: Verification, bad: Verification, tmp_path: Path, drawn_at_once: None
) -> None:
    folder = tmp_path / "new" / "folder"
    write_report(bad, folder)
    write_report(good, folder)
    assert sorted(path.name for path in folder.iterdir()) == [PAGE_FILE, JSON_FILE]
    assert decode((folder / JSON_FILE).read_bytes(), Verification).passed


def test_a_failed_write_leaves_the_old_report(
    good: Verification,
    bad: Verification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drawn_at_once: None,
) -> None:
    write_report(good, tmp_path)

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(VerificationError, match=r"No space left.*--output"):
        write_report(bad, tmp_path)
    assert decode((tmp_path / JSON_FILE).read_bytes(), Verification) == good
    assert sorted(path.name for path in tmp_path.iterdir()) == [PAGE_FILE, JSON_FILE]


def test_a_folder_that_is_a_file_is_an_error(
    good: Verification, tmp_path: Path, drawn_at_once: None
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VerificationError, match="choose another --output"):
        write_report(good, tmp_path / "file")


def test_a_report_with_no_rung_to_draw_is_still_a_page(good: Verification) -> None:
    nothing = replace(
        good,
        rungs=tuple(
            replace(rung, before=None, first=None, verdict="not verified") for rung in good.rungs
        ),
    )
    assert Page(render(nothing)).open == []


def test_figures_are_worded() -> None:
    assert [wording.figure(value) for value in (None, 0.0, 3.14e-7)] == ["-", "0", "3.1e-07"]
    assert [wording.cosine(value) for value in (None, 1.0, 1 - 4e-13, 0.5)] == [
        "-",
        "1",
        "1 - 4e-13",
        "0.5000",
    ]
    assert [wording.percent(value) for value in (None, 1.0, 0.9999, 0.0)] == [
        "-",
        "100 %",
        "99.9 %",
        "0 %",
    ]


def test_an_engine_verified_again_stays_whole(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    """The report lies in the engine's folder, and is no part of the bundle."""
    engine = faults.build(tiny_bundle, tmp_path / "engine", split=False)
    found = verify(engine.path, QUICK)
    write_report(found, engine.path)
    assert verify(engine.path, QUICK).passed
    assert compare({"y": np.ones(1)}, {"y": np.ones(1)}, 0.0).passed
    assert report.JSON_FILE not in engine.manifest.files
