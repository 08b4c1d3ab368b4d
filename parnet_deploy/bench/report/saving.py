"""A benchmark on disk: JSON for programs, Markdown for repositories, one page for people."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.report import table
from parnet_deploy.bench.result import BenchResult
from parnet_deploy.errors import BundleError, SpecError, os_reason
from parnet_deploy.pages.sheet import Sheet, markdown, plain
from parnet_deploy.spec import decode, encode

SUFFIXES = (".json", ".md", ".html")


def targets(
    output: Path,
    title: str,
    *,
    suffixes: Sequence[str] = SUFFIXES,
    day: datetime.date | None = None,
) -> tuple[Path, ...]:
    """Which files an ``--output`` asks for.

    One that ends in ``.json``, ``.md`` or ``.html`` is that file. A folder that is there gets one
    of each, named after the day and the title: ``2026-12-01-parnet-l-on-a-cpu.json``. Everything
    else is the name of all of them, without its ending.

    Args:
        output: what was asked for.
        title: the benchmark's.
        suffixes: which kinds of file to make where it does not name one.
        day: the date in the name; today in UTC where it is None.
    """
    if output.suffix in SUFFIXES:
        return (output,)
    if output.is_dir():
        day = day or datetime.datetime.now(datetime.UTC).date()
        output /= f"{day.isoformat()}-{slug(title)}"
    return tuple(output.with_name(f"{output.name}{suffix}") for suffix in suffixes)


def slug(title: str) -> str:
    """A title as a file's name: small letters, digits, dots inside numbers, and hyphens."""
    words = re.findall(r"[a-z0-9]+(?:\.[0-9]+)*", title.lower())
    return "-".join(words)[:80].strip("-.") or "bench"


def contents(
    result: BenchResult, files: Sequence[Path], *, extra: Sequence[Sheet] = ()
) -> dict[Path, str]:
    """What is to stand in each file, by its ending. Nothing is written.

    Args:
        result: what was found.
        files: from `targets`.
        extra: further tables for people: the paper's beside ours.
    """
    shown = portable(result, Path.cwd())
    return {path: _content(shown, path.suffix, extra) for path in files}


def portable(result: BenchResult, folder: Path) -> BenchResult:
    """A benchmark without the paths of the machine that it was made on: results are published.

    A path below `folder` becomes relative to it; of any other, the last part is left.
    """

    def shown(path: str) -> str:
        place = Path(path)
        inside = place.is_absolute() and place.is_relative_to(folder)
        return str(place.relative_to(folder)) if inside else place.name

    def moved(contestant: Contestant) -> Contestant:
        return replace(contestant, path=shown(contestant.path), images=shown(contestant.images))

    outcomes = tuple(replace(o, contestant=moved(o.contestant)) for o in result.outcomes)
    return replace(result, outcomes=outcomes)


def read(path: Path) -> BenchResult:
    """A benchmark from the JSON that was written of it.

    Raises:
        BundleError: it cannot be read, or is no benchmark.
    """
    try:
        return decode(path.read_bytes(), BenchResult)
    except OSError as exc:
        raise BundleError(f"cannot read {path}: {os_reason(exc)}") from exc
    except SpecError as exc:
        raise BundleError(
            f"{path} is no benchmark: {exc}; 'parnet-deploy bench --output' writes one as JSON"
        ) from exc


def to_json(result: BenchResult) -> str:
    """JSON with every figure: what is nothing but numbers stands on one line."""
    # Inside a text there is no line break: JSON escapes it.
    numbers = re.compile(r"\[\n\s+([-+.\deE,\s]+?)\n\s*\]")
    return numbers.sub(lambda m: f"[{' '.join(m[1].split())}]", encode(result).decode())


def to_markdown(result: BenchResult, extra: Sequence[Sheet] = ()) -> str:
    """The words and the tables, with what they hold for."""
    settings, conditions = result.settings, result.conditions
    versions = ", ".join(f"{name} {version}" for name, version in conditions.versions.items())
    how = (
        f"{result.date}; batch {settings.batch}; {settings.rounds} interleaved rounds in shuffled "
        f"order, a process per contestant, started {settings.processes} times."
    )
    lines = [
        f"# {plain(result.title)}",
        "",
        how,
        "",
        f"    {' '.join(result.command.split())}",
        "",
        *_bullets("Hardware", conditions.hardware),
        *_bullets("Versions", (versions,) if versions else ()),
        *_bullets("Observed", conditions.observations),
        *_bullets("Doubtful", conditions.warnings),
        *_bullets("Found", result.verdict),
    ]
    sheets = (*table.sheets(result), *extra)
    return "\n".join(lines) + "\n" + "\n".join(markdown(sheet) for sheet in sheets)


def _content(result: BenchResult, suffix: str, extra: Sequence[Sheet]) -> str:
    if suffix == ".json":
        return to_json(result)
    if suffix == ".md":
        return to_markdown(result, extra)
    from parnet_deploy.bench.report.page import render

    return render(result, extra)


def _bullets(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"{title}:", "", *(f"- {plain(each)}" for each in sentences), ""] if sentences else []
