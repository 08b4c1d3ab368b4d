"""Packages that a command needs: what is said where one is missing."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from parnet_deploy.cli import packages
from parnet_deploy.cli.packages import NEEDS, need
from parnet_deploy.errors import MissingDependencyError

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in modules else find(name)
    )


@pytest.mark.parametrize("command", NEEDS)
def test_what_the_tests_install_is_enough(command: str) -> None:
    need(command)


def test_one_package(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sklearn")
    with pytest.raises(MissingDependencyError) as caught:
        need("train")
    assert str(caught.value) == (
        "train needs scikit-learn, which is not installed: pip install 'parnet-deploy[train]'"
    )


def test_a_module_of_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.MODULES, "tritonclient", "no_such_package.grpc")
    with pytest.raises(MissingDependencyError, match=r"pip install 'parnet-deploy\[grpc\]'"):
        need("serve --grpc-port")


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch", "onnx_graphsurgeon")
    with pytest.raises(MissingDependencyError, match="torch, onnx-graphsurgeon, which are not"):
        need("export")


@pytest.mark.parametrize("command", NEEDS)
def test_the_extra_that_is_named_brings_them(command: str) -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    needs = NEEDS[command]
    lines = list(extras[needs.extra])
    if "parnet-deploy[export]" in lines:
        lines += extras["export"]
    assert set(needs.packages) <= {Requirement(line).name for line in lines}
