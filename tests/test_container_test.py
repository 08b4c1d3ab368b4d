"""``scripts/container-test`` without a container: what it looks for, and that it can fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from container_files import EXTRAS, ROOT


def load() -> ModuleType:
    path = ROOT / "scripts" / "container_test.py"
    sys.path.append(str(path.parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location("container_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["container_test"] = module
    spec.loader.exec_module(module)
    return module


script = load()
image = sys.modules["container_image"]

GUESSES = [
    {"label": "palace", "index": 698, "probability": 0.5},
    {"label": "boathouse", "index": 449, "probability": 0.25},
]

HARDENED: dict[str, Any] = {
    "uids": [10001] * 4,
    "gids": [10001] * 4,
    "capabilities": [0, 0, 0],
    "no_new_privileges": 1,
    "writable": [],
    "installed": [],
}


def test_the_same_guesses_are_the_same() -> None:
    near = [{**guess, "probability": guess["probability"] + 1e-7} for guess in GUESSES]
    script.compare(near, GUESSES)


@pytest.mark.parametrize(
    ("answered", "problem"),
    [
        (GUESSES[:1], "1 guesses were answered, and 2 predicted"),
        (GUESSES[::-1], "guess 1 is 'boathouse', and 'predict' says 'palace'"),
        ([{**GUESSES[0], "probability": 0.51}, GUESSES[1]], "'palace' has probability 0.51"),
        ([{**GUESSES[0], "probability": float("nan")}, GUESSES[1]], "has probability nan"),
    ],
)
def test_other_guesses_are_a_failure(answered: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(script.ContainerTestError, match=problem):
        script.compare(answered, GUESSES)


def test_no_guess_at_all_is_a_failure() -> None:
    with pytest.raises(script.ContainerTestError, match="0 guesses"):
        script.compare([], [])


def test_a_hardened_process_passes() -> None:
    script.check_inside(HARDENED)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"uids": [0, 0, 0, 0]}, "it runs as root"),
        ({"gids": [10001, 0, 10001, 10001]}, "it runs as root"),
        ({"capabilities": [0, 0, 0x400]}, "it has capabilities"),
        ({"no_new_privileges": 0}, "it may gain privileges"),
        ({"writable": ["/tmp"]}, "it can write to /tmp"),
        ({"installed": ["torch"]}, "torch can be imported"),
    ],
)
def test_a_process_that_may_more_is_a_failure(fault: dict[str, Any], problem: str) -> None:
    with pytest.raises(script.ContainerTestError, match=problem):
        script.check_inside({**HARDENED, **fault})


def test_an_image_may_be_as_large_as_its_flavour() -> None:
    script.check_size(400_000_000, "cpu")
    script.check_size(4_000_000_000, "cuda")
    with pytest.raises(script.ContainerTestError, match="has 401 MB, more than 400 MB"):
        script.check_size(401_000_000, "cpu")


def test_a_missing_tool_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    problem = script.missing(["sh", "no-such-tool"])
    assert problem.startswith("no-such-tool not found: apt-get install")
    for tool in ("buildah", "podman", "runc", "debootstrap"):
        assert tool in problem
    assert "\n" not in problem


def test_without_its_tools_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    monkeypatch.setattr(script, "check", lambda *arguments: pytest.fail("it began"))
    assert script.main([]) == 1
    assert capsys.readouterr().err.startswith("error: buildah, podman, runc, debootstrap, nsenter")


def test_only_root_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "as root" in script.missing(["sh"])


def test_a_failure_ends_with_1_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = []

    def fail(store: Any, options: object) -> None:
        stores.append(store)
        assert store.folder.is_dir()
        raise script.ContainerTestError("the container ended instead of serving")

    monkeypatch.setattr(script, "missing", lambda tools: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(script, "check", fail)
    assert script.main(["--base", "localhost/any"]) == 1
    assert capsys.readouterr().err == "error: the container ended instead of serving\n"
    assert not stores[0].folder.exists()


def test_a_failed_command_is_quoted() -> None:
    with pytest.raises(script.ContainerTestError, match="ended with 3: no space left"):
        image.output(["sh", "-c", "echo no space left >&2; exit 3"])


def test_the_machines_way_to_its_index_is_passed_on_as_secrets(tmp_path: Path) -> None:
    listed = (
        ":env:.index-url='https://one.example/simple'\n"
        ":env:.find-links='/wheels'\n"
        "global.cert='/etc/ca.crt'\n"
        "global.extra-index-url='file:///here https://two.example/simple'\n"
        "global.index-url='https://other.example/simple'\n"
    )
    arguments = image.pip_secrets(tmp_path, listed)
    file = tmp_path / "pip.conf"
    assert arguments == [
        *("--secret", "id=ca.pem,src=/etc/ca.crt"),
        *("--secret", f"id=pip.conf,src={file}"),
    ]
    assert file.read_text().splitlines() == [
        "[global]",
        "index-url = https://one.example/simple",
        "extra-index-url = https://two.example/simple",
        "cert = /run/secrets/ca.pem",
    ]


def test_its_flavours_are_those_that_have_a_lock() -> None:
    for flavour in EXTRAS:
        assert script.parse(["--flavour", flavour]).flavour == flavour
    with pytest.raises(SystemExit):
        script.parse(["--flavour", "tpu"])


def test_it_serves_hardened_and_cut_off() -> None:
    words = " ".join(script.HARDENED)
    for option in ("--read-only ", "--read-only-tmpfs=false", "--cap-drop all", "--network none"):
        assert option in words
    assert os.access(ROOT / "scripts" / "container-test", os.X_OK)
