"""``parnet-deploy build-engine`` as a user calls it, with bad input and interruptions."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import call, call_and_close
from conftest import Cli, clean_error, export_tiny

from parnet_deploy.bundle import ModelBundle, open_engine_bundle
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import default_form

CPU = ("--backend", "onnxruntime", "--provider", "cpu", "--threads", "1")


@pytest.fixture
def models(tiny_bundle: ModelBundle, tmp_path: Path) -> Path:
    """A folder ``models`` with one bundle, where the command is called."""
    shutil.copytree(tiny_bundle.path, tmp_path / "models" / "tiny")
    return tmp_path / "models"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_without_a_bundle_the_only_one_is_built_and_the_result_is_told(
    cli: Cli, models: Path, tmp_path: Path
) -> None:
    result = cli("build-engine", "--split-streams", *CPU)
    assert result.returncode == 0, result.stderr
    assert left_in(tmp_path / "engines") == ["tiny-onnxruntime-cpu-split"]
    bundle = open_engine_bundle(tmp_path / "engines" / "tiny-onnxruntime-cpu-split")
    open_runner(bundle).close()
    assert [stage.device for stage in bundle.manifest.stages] == ["cpu"] * 4
    for line in ("stream1  cpu", "stream2  cpu", "stream3  cpu", "fusion   cpu"):
        assert line in result.stdout
    assert "kernels" not in result.stdout  # ONNX Runtime does not tell
    assert re.search(r"engine +device +size +threads", result.stdout)
    assert len(re.findall(r"cpu +[0-9.]+ KiB +1 *$", result.stdout, re.MULTILINE)) == 4
    last = result.stdout.splitlines()[-1]
    assert last == "next: parnet-deploy verify engines/tiny-onnxruntime-cpu-split"
    assert "UNTRAINED" in result.stderr
    assert "build: fusion for cpu" in result.stderr


def test_auto_says_why_and_json_is_clean(here: Cli, models: Path, tmp_path: Path) -> None:
    result = here("build-engine", models / "tiny", "--output", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["path"] == str(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert report["manifest"] == manifest
    for reason in report["reasons"]:
        assert f"auto: {reason}" in result.stderr
    assert report["reasons"][-1].startswith(manifest["backend"])
    assert "UNTRAINED" in result.stderr


def test_progress_that_nobody_reads_stops_nothing(models: Path, tmp_path: Path) -> None:
    built = tmp_path / "out"
    arguments = ("build-engine", models / "tiny", *CPU, "--output", built)
    assert call_and_close(*arguments, stream="stderr") == 0
    open_engine_bundle(built)


def test_several_bundles_and_nobody_to_ask_is_one_clear_error(here: Cli, models: Path) -> None:
    shutil.copytree(models / "tiny", models / "other")
    result = here("build-engine", *CPU)
    clean_error(result, "several bundles", "models/other, models/tiny")
    assert result.returncode == 2


def test_no_bundle_at_all_says_how_to_make_one(here: Cli) -> None:
    result = here("build-engine", *CPU)
    clean_error(result, "there is no bundle under models/", "parnet-deploy export")
    assert result.returncode == 2


def test_on_a_terminal_it_asks_until_the_answer_is_one(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", models / "other")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "parnet_deploy", "build-engine", *CPU],
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    os.write(ours, b"3\nother\n2\n")
    _, told = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, told
    assert "1  models/other" in told
    assert "2  models/tiny" in told
    assert told.count("Which one (1 to 2)") == 3
    assert left_in(tmp_path / "engines") == ["tiny-onnxruntime-cpu"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--tf32", *CPU), ("--tf32 does not apply to onnxruntime", "tensorrt")),
        (("--devices", "0,x", *CPU), ("--devices takes whole numbers",)),
        (("--backend", "tensorrt-rtx", "--compute-capability", "8.6,ampere"), ("'ampere'",)),
        (("--backend", "tflite"), ("tflite", "onnxruntime", "openvino", "ncnn")),
        (("--spin", "--backend", "openvino"), ("--spin does not apply to openvino", "onnxruntime")),
    ],
    ids=["tf32", "devices", "capability", "backend", "spin"],
)
def test_options_that_cannot_be_are_wrong_usage(
    here: Cli, models: Path, tmp_path: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    result = here("build-engine", *options)
    clean_error(result, *parts)
    assert result.returncode == 2
    assert not (tmp_path / "engines").exists()


def test_an_existing_engine_is_kept_without_force_and_replaced_with_it(
    here: Cli, models: Path, tmp_path: Path
) -> None:
    final = tmp_path / "engines" / "tiny-onnxruntime-cpu"
    assert here("build-engine", *CPU).returncode == 0
    before = (final / "manifest.json").read_bytes()
    clean_error(here("build-engine", *CPU), "exists already", "--force")
    assert (final / "manifest.json").read_bytes() == before
    damaged = models / "tiny" / "stages" / "weights.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    clean_error(here("build-engine", *CPU, "--force"), "weights.safetensors is damaged")
    assert (final / "manifest.json").read_bytes() == before
    assert left_in(final.parent) == [final.name]


def test_force_never_replaces_the_model_nor_what_is_no_bundle(
    here: Cli, models: Path, tmp_path: Path
) -> None:
    model = models / "tiny"
    clean_error(here("build-engine", *CPU, "--output", model, "--force"), "is the model itself")
    other = tmp_path / "precious"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    clean_error(
        here("build-engine", *CPU, "--output", other, "--force"), "--force does not replace it"
    )
    assert (other / "notes.txt").read_text() == "mine"
    assert (model / "manifest.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_clear_error(
    here: Cli, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "engines").mkdir(mode=0o555)
    clean_error(here("build-engine", *CPU), "cannot write", "Permission denied")


def test_a_parent_that_is_a_file_is_one_clear_error(
    here: Cli, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "engines").write_text("")
    clean_error(here("build-engine", *CPU), "cannot write", "is not a folder")


SCRIPT = """
import resource, sys, time
from parnet_deploy.cli.main import run
from parnet_deploy.engine.onnxruntime import OnnxRuntimeBuilder

limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
else:
    build = OnnxRuntimeBuilder.build

    def slowly(self, stage, folder):
        result = build(self, stage, folder)
        print("half-way", flush=True)
        time.sleep(60)
        return result

    OnnxRuntimeBuilder.build = slowly
sys.exit(run(sys.argv[2:]))
"""


def start(tmp_path: Path, limit: int, *more: str) -> subprocess.Popen[str]:
    """The command, with a limit on files' sizes in bytes, or (0) slow enough to be interrupted."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(limit), "build-engine", "--split-streams", *CPU, *more],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt_half_way(process: subprocess.Popen[str], kind: signal.Signals) -> tuple[int, str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "half-way\n"
    time.sleep(0.1)
    process.send_signal(kind)
    _, told = process.communicate(timeout=30)
    return process.returncode, told


@pytest.mark.parametrize(
    ("kind", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_an_interrupted_build_leaves_nothing_and_keeps_the_old_engine(
    models: Path, tmp_path: Path, kind: signal.Signals, status: int, word: str
) -> None:
    final = tmp_path / "engines" / "tiny-onnxruntime-cpu-split"
    final.mkdir(parents=True)
    (final / "manifest.json").write_text("{}")
    returned, told = interrupt_half_way(start(tmp_path, 0, "--force"), kind)
    assert returned == status
    assert f"{word}; nothing was left half-written" in told
    assert "Traceback" not in told
    assert left_in(tmp_path / "engines") == [final.name]
    assert (final / "manifest.json").read_text() == "{}"


def test_a_killed_build_leaves_nothing_under_the_name_and_the_next_one_cleans_up(
    here: Cli, models: Path, tmp_path: Path
) -> None:
    returned, _ = interrupt_half_way(start(tmp_path, 0), signal.SIGKILL)
    assert returned == -signal.SIGKILL
    (hidden,) = left_in(tmp_path / "engines")
    assert hidden.startswith(".tiny-onnxruntime-cpu-split.")
    assert here("build-engine", "--split-streams", *CPU).returncode == 0
    assert left_in(tmp_path / "engines") == ["tiny-onnxruntime-cpu-split"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    process = start(tmp_path, 20_000)
    _, told = process.communicate(timeout=60)
    result = subprocess.CompletedProcess(process.args, process.returncode, "", told)
    clean_error(result, "could not write 'stream", "disk full")
    assert left_in(tmp_path / "engines") == []


def test_a_form_that_another_backend_is_served_by_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for backend in ("tensorrt", "onnxruntime"):
        model = export_tiny(tmp_path / backend, form=default_form(backend))
        given = (model.path, "--backend", "onnxruntime", "--output", tmp_path / f"{backend}-engine")
        result = call(capsys, "build-engine", *given)
        assert result.status == 0, result.err
        assert ("export --for onnxruntime" in result.out) == (backend == "tensorrt")
