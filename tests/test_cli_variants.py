"""``variants``: its counts are the reference's, to the last digit shown."""

from __future__ import annotations

import json

import pytest

from parnet_deploy.cli import main
from parnet_deploy.spec import VARIANTS

# Counted from the authors' released implementation: parameters (M) in training and fused form,
# GFLOP of the fused form at 224x224. From the paper: parameters (M), GFLOP (table 2), top-1 (1).
REFERENCE = """
| S | 96, 192, 384, 1280 | 20.984 | 19.177 | 9.67 | 19.2, 9.7 | 75.19 |
| M | 128, 256, 512, 2048 | 38.953 | 35.577 | 17.16 | 35.6, 17.2 | 76.60 |
| L | 160, 320, 640, 2560 | 60.180 | 54.915 | 26.65 | 54.9, 26.7 | 77.66 |
| XL | 200, 400, 800, 3200 | 93.176 | 84.963 | 41.43 | 85.0, 41.5 | 78.55 |
"""


def reference() -> dict[str, list[str]]:
    """Each variant's figures as text, digits and all."""
    rows = {}
    for line in REFERENCE.strip().splitlines():
        name, widths, training, fused, gflop, paper, top1 = line.strip("| ").split(" | ")
        rows[name.lower()] = [training, fused, gflop, widths.replace(" ", ""), *paper.split(", ")]
        rows[name.lower()].append(top1)
    return rows


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.run(["variants", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize("name", ["s", "m", "l", "xl"])
def test_table_shows_the_reference_to_the_last_digit(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = next(line for line in run(capsys).splitlines() if line.split()[:1] == [name])
    training, fused, gflop, widths, *paper = reference()[name]
    assert line.split() == [name, "12", training, fused, gflop, "3", widths, *paper]


def test_json_holds_exact_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(run(capsys, "--json"))}
    for name, (
        training,
        fused,
        gflop,
        widths,
        parameters,
        paper_gflop,
        top1,
    ) in reference().items():
        counts, paper = rows[name]["counts"], rows[name]["paper"]
        assert all(type(value) is int for value in counts.values())
        assert f"{counts['parameters_training'] / 1e6:.3f}" == training
        assert f"{counts['parameters_fused'] / 1e6:.3f}" == fused
        assert f"{counts['flop_fused'] / 1e9:.2f}" == gflop
        assert counts["depth"] == 12
        assert paper["tables"][:2] == [1, 2]
        assert paper["parameters_millions"] == float(parameters)
        assert paper["gflop"] == float(paper_gflop)
        assert paper["top1_percent"] == float(top1)
        spec = rows[name]["spec"]
        assert [*spec["stream_widths"], spec["last_width"]] == [int(w) for w in widths.split(",")]


def test_small_images_have_networks_of_the_papers_sizes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {row["name"]: row for row in json.loads(run(capsys, "--json"))}
    for name, millions in {"cifar-s": 1.3, "cifar-m": 15.5, "cifar-l": 35.0}.items():
        assert rows[name]["counts"]["depth"] == 12
        # The paper writes "35 M" for the largest: two digits of it are known.
        digits = 0 if name == "cifar-l" else 1
        assert round(rows[name]["counts"]["parameters_fused"] / 1e6, digits) == millions


def test_piped_at_80_columns_nothing_is_cut_or_coloured(cli: object) -> None:
    result = cli("variants", env={"COLUMNS": "80"})  # type: ignore[operator]
    assert result.returncode == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    row = next(line for line in result.stdout.splitlines() if line.startswith("m-four"))
    assert row.split()[6] == "112,224,448,448,1632"


def test_every_variant_stands_in_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys).splitlines()
    rows = [line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in VARIANTS]
    assert sorted(rows) == sorted(VARIANTS)
