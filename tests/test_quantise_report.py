"""The report: what is found is said, on a page that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_spec
from html_pages import Page
from quantised import FP8, INT8, labelled, network, quantised, tiny

from parnet_deploy.errors import ExportError, UsageError
from parnet_deploy.export.kernels import block_kernels
from parnet_deploy.quantise import wording
from parnet_deploy.quantise.effect import Effect
from parnet_deploy.quantise.examine import Choices, Examined, examine
from parnet_deploy.quantise.names import JSON_FILE, PAGE_FILE
from parnet_deploy.quantise.page import render
from parnet_deploy.quantise.report import write_report
from parnet_deploy.quantise.result import QuantisationReport
from parnet_deploy.spec import DeployForm, decode
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Scheme


def found(
    choices: Choices, scheme: Scheme | None = INT8, precision: Precision = "int8", **more: object
) -> Examined:
    trial = labelled(tiny(), wrong=1)
    assert scheme is not None
    return examine(
        trial.graph,
        precision,
        scheme,
        tiny().images,
        choices,
        name="<b>tiny",
        judging=trial.images,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def full() -> Examined:
    choices = Choices(
        method="minmax", keep=("stem1",), budget=100.0, equalise=True, correct_bias=True
    )
    model = network(tiny_spec(activation="silu"))
    return found(choices, kernels=block_kernels(model, DeployForm(squeeze="gemm")))


@pytest.fixture(scope="module")
def plain() -> Examined:
    return found(Choices(method="mse"))


@pytest.fixture(scope="module")
def page(full: Examined) -> str:
    return render(full.report)


def test_what_was_asked_for_was_done(full: Examined) -> None:
    report, how = full.report, full.quantisation
    assert how.kept == ("stem1",)
    assert how.equalised
    assert how.bias_corrected
    assert [option.option for option in report.options] == ["equalise", "correct-bias"]
    assert report.final == report.options[-1].after
    assert report.kept is not None
    assert report.kept.blocks == ("stem1",)
    assert report.quantisation == how
    assert report.accuracy == 0.875
    assert [layer.block for layer in report.layers] == list(tiny().blocks)
    first, *others = report.layers
    assert (first.kept, first.alone) == (True, None)
    assert all(layer.alone is not None and not layer.kept for layer in others)
    assert all(layer.kernels is not None for layer in report.layers)


def test_without_choices_the_network_is_quantised_as_it_is(plain: Examined) -> None:
    report = plain.report
    assert plain.graph is tiny().graph
    assert plain.quantisation == quantised(tiny(), method="mse")
    assert report.kept is None
    assert report.options == ()
    assert report.final == report.whole
    assert report.naive != report.whole
    assert all(layer.kernels is None for layer in report.layers)
    assert all(layer.activation.snr is not None for layer in report.layers)


def test_the_json_says_all_that_was_found(full: Examined, plain: Examined, tmp_path: Path) -> None:
    for report in (full.report, plain.report):
        path, _ = write_report(report, tmp_path / "new")
        assert decode(path.read_bytes(), QuantisationReport) == report
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert {each.name for each in (tmp_path / "new").iterdir()} == {JSON_FILE, PAGE_FILE}


def test_the_page_needs_nothing_else(page: str, plain: Examined) -> None:
    for text in (page, render(plain.report)):
        read = Page(text)
        assert read.open == []
        assert all(reference.startswith("#") for reference in read.references)
        assert len(read.ids) == len(set(read.ids))
        assert "<script" not in text
        assert not re.search(r"@import|url\((?!#)", text)
        assert text.count("<svg") == 1
        assert "<b>tiny" not in text


def test_the_page_says_who_is_to_blame_and_what_was_done(full: Examined, page: str) -> None:
    text = " ".join(Page(page).text.split())
    for sentence in wording.sentences(full.report):
        assert sentence in text
    for layer in full.report.layers:
        assert layer.block in text
    assert all(each.block in wording.blame(full.report) for each in full.report.blamed)
    assert "--equalise: 2 of " in text
    assert "--correct-bias: the biases of 13 layers were corrected" in text
    assert "For contrast, with whole ranges (minmax) and one scale for each kernel" in text


def test_the_picture_shows_every_layer_in_the_pages_colours(page: str) -> None:
    picture = page[page.index("<svg") : page.index("</svg>")]
    for block in tiny().blocks:
        assert f">{block}<" in picture
    assert "currentColor" in picture
    assert "#010203" not in picture


def test_fp8_is_examined_likewise() -> None:
    report = found(Choices(method="minmax"), FP8, "fp8").report
    assert report.whole.snr is not None
    assert 10 < report.whole.snr < 60
    assert "fp8: top-1" in wording.headline(report)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"budget": -1.0}, "a budget is a number of points"),
        ({"keep": ("nowhere",)}, "there is no layer 'nowhere' to keep"),
        ({"method": "guess"}, "not by 'guess'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_run(
    choices: Mapping[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parnet_deploy.quantise.examine.make_trial", pytest.fail)
    with pytest.raises(UsageError, match=said):
        found(Choices(**choices))  # type: ignore[arg-type]


def test_learned_ranges_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = quantised(tiny(), method="percentile")
    done = found(Choices(method="qat"), learned=learned)
    assert done.quantisation == learned
    with pytest.raises(UsageError, match="leave out --equalise"):
        found(Choices(method="qat", equalise=True), learned=learned)


def test_a_folder_that_cannot_be_written_is_told(plain: Examined, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"cannot write the report to .*file"):
        write_report(plain.report, tmp_path / "file")


SAME = Effect(agreement=1.0, relative=0.0, snr=None, accuracy=0.875)


def test_words_for_what_nothing_happened_to(plain: Examined) -> None:
    report = replace(plain.report, final=None, blamed=())
    assert wording.headline(report) == "nothing is quantised"
    assert wording.blame(report) == "No layer changes the answers when it alone is quantised."
    assert wording.folding(report) == ""
    assert wording.answers(SAME, report) == "top-1 87.50 % on 8 images, the same as fp32"
    assert wording.decibels(None) == "exact"
    render(report)


def test_words_for_accuracy_and_for_agreement(plain: Examined) -> None:
    report = plain.report
    worse, better = replace(SAME, accuracy=0.75), replace(SAME, accuracy=1.0)
    assert wording.answers(worse, report).endswith("12.50 points less than fp32")
    assert wording.answers(better, report).endswith("12.50 points more than fp32")
    bare = replace(report, accuracy=None)
    assert wording.answers(SAME, bare) == "top-1 as in fp32 for 100.00 % of 8 images"


def test_a_kernel_that_folding_harmed_is_named(full: Examined) -> None:
    _, second, *_ = full.report.layers
    assert second.kernels is not None
    assert second.kernels.dense is not None
    dense = replace(second.kernels.dense, per_channel=50.0, per_tensor=30.0)
    folded = replace(second.kernels.folded, per_channel=40.0, per_tensor=29.0)
    harmed = replace(second, kernels=replace(second.kernels, dense=dense, folded=folded))
    one = replace(full.report, layers=(harmed,))
    assert wording.folding(one) == (
        "Folded kernels that are more than 3 dB noisier than their dense branch alone: "
        "with one scale for a kernel, 0 of 1; with a scale for each output channel, 1 of 1 (stem2)."
    )
