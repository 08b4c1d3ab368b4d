"""A benchmark on disk: which files, what is in them, and that it can be read back exactly."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bench_results as made
import pytest

from parnet_deploy.bench.report import page, paper, saving, wording
from parnet_deploy.bench.result import BenchResult, Conditions
from parnet_deploy.bench.statistics import describe
from parnet_deploy.cli.output import refuse_files, write_files
from parnet_deploy.errors import BundleError, OutputExistsError
from parnet_deploy.pages.sheet import Sheet

DAY = datetime.date(2026, 12, 1)


@pytest.fixture(scope="module")
def result() -> BenchResult:
    """Everything that can stand in one does."""
    found = made.contest()
    first = replace(
        found.outcomes[0],
        compute=describe([[0.1, 0.2]]),
        gpu_memory=2**33,
        kernels=92,
        warnings=("hot | <loud>",),
    )
    found = replace(
        found,
        outcomes=(first, *found.outcomes[1:]),
        title="ParNet-L, batch 1",
        conditions=Conditions(
            hardware=(made.CPU, made.GPU),
            versions={"torch": "2.14.1"},
            observations=("41 C",),
            warnings=("busy",),
        ),
    )
    return replace(found, verdict=wording.sentences(found))


def test_json_reads_back_exactly(result: BenchResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(saving.to_json(result))
    assert saving.read(path) == result


def test_what_is_written_has_no_path_of_this_machine(result: BenchResult, tmp_path: Path) -> None:
    first, second, *rest = result.outcomes
    here = Path.cwd()
    first = replace(
        first,
        contestant=replace(
            first.contestant, path=str(here / "engines" / "l"), images=str(tmp_path / "i.npz")
        ),
    )
    second = replace(
        second, contestant=replace(second.contestant, path=str(tmp_path / "peers" / "ncnn"))
    )
    moved = replace(result, outcomes=(first, second, *rest))
    file = tmp_path / "found.json"
    text = saving.contents(moved, [file])[file]
    assert str(here) not in text
    assert str(tmp_path) not in text
    file.write_text(text)
    told = [outcome.contestant for outcome in saving.read(file).outcomes]
    assert (told[0].path, told[0].images, told[1].path) == ("engines/l", "i.npz", "ncnn")


def test_json_has_a_line_for_each_round_not_for_each_run(result: BenchResult) -> None:
    text = saving.to_json(result)
    json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    rounds = [line for line in text.splitlines() if line.strip().startswith("[")]
    assert len(rounds) == sum(len(outcome.rounds) for outcome in result.outcomes)
    assert all(line.count(",") >= 19 for line in rounds)


def test_text_that_looks_like_numbers_stays_as_it_is(result: BenchResult, tmp_path: Path) -> None:
    odd = replace(result, title="[\n 1,\n 2 \n]", command="[ 1,  2 ]", verdict=("[ 3 ]",))
    path = tmp_path / "result.json"
    path.write_text(saving.to_json(odd))
    assert saving.read(path) == odd


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read"):
        saving.read(tmp_path / "none.json")
    for text in ("{", '{"title": "x"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BundleError, match=r"is no benchmark: .*--output"):
            saving.read(tmp_path / "bad.json")


@pytest.mark.parametrize("name", ["bench.html", "bench.md", "bench.json"])
def test_a_files_name_asks_for_that_file(tmp_path: Path, name: str) -> None:
    assert saving.targets(tmp_path / name, "t") == (tmp_path / name,)


def test_another_name_is_that_of_all(tmp_path: Path) -> None:
    names = [path.name for path in saving.targets(tmp_path / "onnxruntime-1.31", "t")]
    assert names == ["onnxruntime-1.31.json", "onnxruntime-1.31.md", "onnxruntime-1.31.html"]


def test_a_folder_gets_dated_files(tmp_path: Path) -> None:
    files = saving.targets(tmp_path, "ParNet-L: batch 1, on 1.31", day=DAY)
    stem = "2026-12-01-parnet-l-batch-1-on-1.31"
    assert files == tuple(tmp_path / f"{stem}{suffix}" for suffix in (".json", ".md", ".html"))
    (only,) = saving.targets(tmp_path, "t", suffixes=(".md",), day=DAY)
    assert only.name == "2026-12-01-t.md"
    today = datetime.datetime.now(datetime.UTC).date()
    assert saving.targets(tmp_path, "t")[0].name[:10] in (
        today.isoformat(),
        (today - datetime.timedelta(days=1)).isoformat(),
    )


@pytest.mark.parametrize(
    ("title", "name"),
    [("../../etc/passwd", "etc-passwd"), ("", "bench"), ("...", "bench"), ("x" * 200, "x" * 80)],
)
def test_a_title_makes_a_safe_name(title: str, name: str) -> None:
    assert saving.slug(title) == name


def test_every_kind_of_file_is_made(
    result: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def render(found: BenchResult, extra: Sequence[Sheet]) -> str:
        drawn.append((found, tuple(extra)))
        return "<!doctype html>"

    monkeypatch.setattr(page, "render", render)
    files = saving.targets(tmp_path / "all", result.title)
    tables = paper.sheets(result)
    write_files(saving.contents(result, files, extra=tables), force=False)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    told = saving.portable(result, Path.cwd())
    assert saving.read(files[0]) == told
    assert "the paper's table 2" in files[1].read_text()
    assert files[2].read_text() == "<!doctype html>"
    assert drawn == [(told, tables)]


def test_markdown_says_what_the_figures_hold_for(result: BenchResult) -> None:
    text = saving.to_markdown(result)
    assert text.startswith("# ParNet-L, batch 1\n")
    for part in (
        "12 interleaved rounds",
        f"    {result.command}",
        f"- {made.CPU}",
        f"- {made.GPU}",
        "- torch 2.14.1",
        "- 41 C",
        "- busy",
        r"ncnn: hot \| \<loud\>",
    ):
        assert part in text
    assert text.count("\n- l: ") == len(result.verdict)
    for outcome in result.outcomes:
        assert f"{outcome.contestant.name}" in text


def test_nothing_is_written_where_one_of_the_files_is_there(tmp_path: Path) -> None:
    new, old = tmp_path / "a.md", tmp_path / "b.md"
    old.write_text("old")
    with pytest.raises(OutputExistsError, match="--force"):
        write_files({new: "1", old: "2"}, force=False)
    assert not new.exists()
    assert old.read_text() == "old"
    write_files({new: "1", old: "2"}, force=True)
    assert old.read_text() == "2"


def test_a_folder_that_is_not_there_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no folder"):
        refuse_files([tmp_path / "none" / "a.md"], force=False)
    refuse_files([tmp_path / "a.md"], force=False)
    assert list(tmp_path.iterdir()) == []
