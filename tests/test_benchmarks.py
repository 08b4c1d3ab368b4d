"""The benchmarks compare what they say they compare."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from conftest import tiny_spec
from torch import nn

from parnet_deploy.bundle import open_engine_bundle
from parnet_deploy.spec import Backend, DeployForm, default_form

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import train_step

    return train_step


@pytest.mark.parametrize(
    "changes",
    [{}, {"squeeze": False}, {"activation": "relu", "conv_dropout": 0.2, "dropout": 0.1}],
    ids=["as it is", "no squeeze", "relu, dropout"],
)
def test_the_plain_network_is_the_same_one(
    train_step: ModuleType, changes: dict[str, object]
) -> None:
    train_step.check_same(tiny_spec(**changes))


def other_eps(model: nn.Module) -> None:
    model.blocks[-2].dense.bn.eps *= 2


def other_activation(model: nn.Module) -> None:
    model.blocks[0].act = nn.GELU()


def no_shuffle(model: nn.Module) -> None:
    model.blocks[-3].shuffle.groups = 1


def a_weight_without_gradient(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)


@pytest.mark.parametrize(
    "fault", [other_eps, other_activation, no_shuffle, a_weight_without_gradient]
)
def test_another_network_is_noticed(
    train_step: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: Callable[[nn.Module], None]
) -> None:
    plain = train_step.PlainParNet

    def faulty(spec: object) -> nn.Module:
        model: nn.Module = plain(spec)
        fault(model)
        return model

    monkeypatch.setattr(train_step, "PlainParNet", faulty)
    with pytest.raises(AssertionError, match=r"differs by|is missing"):
        train_step.check_same(tiny_spec())


@pytest.mark.parametrize("name", ["plain timm layers", "parnet-deploy"])
@pytest.mark.parametrize("layout", [(), ("--channels-last",)], ids=["contiguous", "channels last"])
def test_a_contestant_is_timed(
    train_step: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, layout: tuple[str, ...]
) -> None:
    arguments = ["--variant", "digits", "--batch", "2", "--iterations", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments, *layout])
    (milliseconds,) = train_step.work(name, train_step._parse())
    assert milliseconds > 0


def test_ratios_are_those_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import contest

    rounds = [{"a": [1.0, 2.0, 9.0], "b": [1.0]}, {"a": [20.0], "b": [5.0, 5.0]}]
    fast, slow = contest.summarise(rounds, "a")
    assert (fast.name, fast.median_ms, fast.ratio) == ("b", 3.0, 0.375)
    assert (slow.name, slow.ratio, slow.ratio_low, slow.ratio_high) == ("a", 1.0, 1.0, 1.0)
    assert (fast.ratio_low, fast.ratio_high) == (0.3125, 0.4375)


@pytest.fixture
def forms_cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import forms_cpu

    return forms_cpu


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "ncnn"])
def test_forms_are_all_there_are_each_once_and_the_backends_own_first(
    forms_cpu: ModuleType, backend: Backend
) -> None:
    found = list(forms_cpu.forms(forms_cpu.parse(["--backend", backend])))
    assert found[0] == default_form(backend)
    assert len(found) == len(set(found)) == 2 * 3 * 2
    assert len({forms_cpu.name_of(form) for form in found}) == len(found)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "ncnn"])
def test_a_form_is_built_and_timed(
    forms_cpu: ModuleType, backend: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--backend", backend, "--variant", "digits", "--iterations", "2", "--threads", "1"]
    options = forms_cpu.parse(given)
    form = DeployForm(identity_bn="fold", squeeze="conv", join="concat")
    engine = forms_cpu.build(form, tmp_path, options)
    manifest = open_engine_bundle(engine).manifest
    assert (manifest.backend, manifest.form, manifest.split) == (backend, form, False)
    assert [stage.threads for stage in manifest.stages] == [1]
    capfd.readouterr()
    command = forms_cpu.worker(engine, options)
    assert subprocess.run(command, check=True).returncode == 0
    first, second = json.loads(capfd.readouterr().out)
    assert min(first, second) > 0


def test_a_result_names_the_command_that_makes_it_again(forms_cpu: ModuleType) -> None:
    given = ["--backend", "ncnn", "--variant", "s", "--rounds", "5", "--threads", "2"]
    options = forms_cpu.parse(given)
    report = forms_cpu.report(options)
    assert report.stem == "ncnn-cpu-forms-s"
    assert f"ncnn {importlib.metadata.version('ncnn')}" in report.title
    program, *arguments = report.command.split()
    assert (BENCHMARKS.parent / program).is_file()
    assert forms_cpu.parse(arguments) == options
