"""The page that tells what was measured: it hides nothing, and is of the list as it is now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import serve_faults  # noqa: E402
from serving_faults.checking import Finding, all_faults  # noqa: E402
from serving_faults.table import Report, Side, page  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))

PAGE = ROOT / "docs" / "serving-faults.md"


def finding(title: str, measured: str, wrong: str = "", *, group: str = "JSON") -> Finding:
    return Finding(title=title, group=group, expected="400", measured=measured, wrong=wrong)


def report(*sides: Side) -> Report:
    return Report(
        date="2026-01-31",
        versions="Python 3.11.",
        memory=96,
        growth="It grew by nothing.",
        sides=sides,
        alone={("JSON", "only | ours"): "it has no such thing"},
        untried={"a read-only disk": "it takes root"},
    )


OURS = Side(
    name="ours",
    findings=(
        finding("garbage", "400"),
        finding("empty", "500", "400 is right"),
        finding("only | ours", "200", "the scores are not the engine's"),
    ),
    scenarios=(finding("a slow header", "408 after 1.0 s", group="deadlines"),),
    deaths=0,
)
OTHER = Side(
    name="Triton",
    findings=(
        finding("garbage", "closed; the server died", "400 is right; the server died"),
        finding("empty", "400"),
    ),
    scenarios=(finding("a slow header", "open", "open; right is: 408", group="deadlines"),),
    deaths=1,
)


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_what_is_wrong_stands_out() -> None:
    text = page(report(OURS, OTHER))
    assert "| ours | 3 | 1 | 2 | 0 |" in rows(text)
    assert "| Triton | 2 | 1 | 2 | 1 |" in rows(text)
    assert "| garbage | 400 | 400 | **closed; the server died** |" in rows(text)
    assert "| empty | 400 | **500** | 400 |" in rows(text)
    wrong = "**200** (the scores are not the engine's)"
    assert f"| only \\| ours | 400 | {wrong} | - |" in rows(text)
    assert "| a slow header | 400 | 408 after 1.0 s | **open** |" in rows(text)
    assert "Triton: it has no such thing." in text
    assert "- a read-only disk: it takes root" in text
    assert "--triton FOLDER" in text
    assert "It grew by nothing." in text


def test_ours_alone() -> None:
    text = page(report(OURS))
    assert "Triton" not in text
    assert "| empty | 400 | **500** |" in rows(text)


def test_the_page_is_of_the_list_as_it_is() -> None:
    """Every fault stands in the documentation, and nothing of ours is wrong there."""
    found = [line.split(" | ") for line in rows(PAGE.read_text(encoding="utf-8"))]
    ours = {cells[0].removeprefix("| "): cells[2] for cells in found if len(cells) > 2}
    titles = [each.title for each in all_faults()]
    titles += [each.title for each in serve_faults.every_scenario()]
    missing = [title for title in titles if title.replace("<", "&lt;") not in ours]
    assert not missing, "run scripts/serve-faults --triton FOLDER --output docs/serving-faults.md"
    assert not [cell for cell in ours.values() if "**" in cell]


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = serve_faults.parse(["--triton", "folder", "--output", "file"])
    assert (options.triton, options.output) == (Path("folder"), Path("file"))
    with pytest.raises(SystemExit):
        serve_faults.parse(["--nothing"])
    assert "scripts/serve-faults" in capsys.readouterr().err
