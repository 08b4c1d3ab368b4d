"""Who takes part in a benchmark: each engine once, siblings and peers where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_results as made
import numpy as np
import pytest

from parnet_deploy.bench import benchmark
from parnet_deploy.bench.benchmark import Programme, run_benchmark
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.reference import Answers, Question
from parnet_deploy.bench.peers import Preparation
from parnet_deploy.bench.result import Absence, Settings
from parnet_deploy.bundle import EngineBundle, ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.errors import UsageError


class EnteredError(Exception):
    """The contest would begin now."""

    def __init__(self, contestants: Sequence[Contestant]) -> None:
        self.names = [contestant.name for contestant in contestants]


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Preparation]:
    """Nothing is measured, and no training framework is loaded."""
    made: list[Preparation] = []

    def prepare(preparation: Preparation) -> Contestant:
        made.append(preparation)
        return Contestant(
            name=preparation.peer,
            group="peer",
            network=preparation.network,
            opener="onnxruntime",
            path="x",
            images=preparation.images,
        )

    def reference(question: Question) -> Answers:
        np.save(question.answers, np.zeros((question.count, 7)))
        return Answers(path=question.answers)

    def hold(contestants: Sequence[Contestant], *_: Any, **__: Any) -> Any:
        raise EnteredError(contestants)

    monkeypatch.setattr(benchmark, "prepare_in_process", prepare)
    monkeypatch.setattr(benchmark, "reference_in_process", reference)
    monkeypatch.setattr(benchmark, "hold_contest", hold)
    return made


@pytest.fixture(scope="module")
def engines(
    tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, EngineBundle]:
    folder = tmp_path_factory.mktemp("engines")
    found = {}
    for name, split in (("whole", False), ("split", True)):
        builder = make_builder("onnxruntime", BuildOptions(provider="cpu"), split=split)
        found[name] = build_engine(tiny_bundle, folder / name, builder, split=split)
    return found


def entered(folder: Path, *engines: EngineBundle, **changes: Any) -> tuple[list[str], list[str]]:
    """Names of contestants, and the steps to them."""
    steps: list[str] = []
    programme = Programme(title="t", command="c", engines=engines, settings=Settings(), **changes)
    with pytest.raises(EnteredError) as caught:
        run_benchmark(programme, folder, steps.append)
    return caught.value.names, steps


def without_model(engine: EngineBundle) -> EngineBundle:
    model = replace(engine.manifest.model, path="gone")
    return replace(engine, manifest=replace(engine.manifest, model=model))


def test_a_sibling_that_is_named_as_well_takes_part_once(
    engines: dict[str, EngineBundle], tmp_path: Path
) -> None:
    for order in (("whole", "split"), ("split", "whole")):
        folder = tmp_path / order[0]
        folder.mkdir()
        names, steps = entered(folder, *(engines[name] for name in order))
        assert names == [f"onnxruntime {name}" for name in order]
        assert not [step for step in steps if step.startswith("build:")]
    (tmp_path / "alone").mkdir()
    names, steps = entered(tmp_path / "alone", engines["split"])
    assert names == ["onnxruntime split", "onnxruntime whole"]
    assert "build: onnxruntime whole" in steps


def test_an_engine_that_is_named_twice_is_refused(
    engines: dict[str, EngineBundle], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(engines["whole"].path)
    twice = engines["whole"], replace(engines["whole"], path=link)
    programme = Programme(title="t", command="c", engines=twice, settings=Settings())
    with pytest.raises(UsageError, match="is named twice; each engine takes part once"):
        run_benchmark(programme, tmp_path)


def test_peers_take_the_model_of_any_engine_of_the_network(
    engines: dict[str, EngineBundle], tmp_path: Path, prepared: list[Preparation]
) -> None:
    lost = without_model(engines["split"])
    names, _ = entered(tmp_path, lost, engines["whole"], against=("onnxruntime",), schedules=False)
    assert names == ["onnxruntime split", "onnxruntime whole", "onnxruntime"]
    assert len(prepared) == 1
    assert Path(prepared[0].model).is_dir()


def test_peers_without_any_model_are_absent_once(
    engines: dict[str, EngineBundle],
    tmp_path: Path,
    prepared: list[Preparation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent: list[Absence] = []
    close = benchmark._Entries.close

    def watched(self: benchmark._Entries) -> None:
        close(self)
        absent.extend(self.absent)

    monkeypatch.setattr(benchmark._Entries, "close", watched)
    both = [without_model(engine) for engine in engines.values()]
    entered(tmp_path, *both, against=("onnxruntime", "mnn"), schedules=False)
    assert [absence.name for absence in absent] == ["onnxruntime", "mnn"]
    assert all("there is no bundle at" in absence.reason for absence in absent)
    assert prepared == []


def test_whose_model_was_replaced_is_doubted_and_says_why(
    engines: dict[str, EngineBundle], tmp_path: Path
) -> None:
    model = replace(engines["whole"].manifest.model, manifest_sha256="f" * 64)
    lost = replace(engines["whole"], manifest=replace(engines["whole"].manifest, model=model))
    programme = Programme(title="t", command="c", engines=(lost,), settings=Settings())
    entries = benchmark._Entries(programme, tmp_path, lambda step: None)
    entries.enter_engine(lost)
    (contestant,) = entries.contestants.values()
    outcome = replace(made.outcome("whole", parity=None), contestant=contestant)
    (said,) = entries.with_doubt(outcome).warnings
    assert said.startswith("how near its answers are is not known: ")
    assert "is another model than" in said
    other = made.outcome("another")
    assert entries.with_doubt(other) is other
