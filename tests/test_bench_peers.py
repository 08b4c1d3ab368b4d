"""Every peer runs the network it is said to run, or is absent and says why."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import export_tiny

from parnet_deploy.bench.contest.messages import Assignment
from parnet_deploy.bench.contest.openers import OpenedRunner, open_contestant
from parnet_deploy.bench.contest.process import worker_of
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries import preparing
from parnet_deploy.bench.entries.images import read_images, write_images
from parnet_deploy.bench.entries.preparing import prepare_in_process, reference_in_process
from parnet_deploy.bench.entries.reference import Question, compare_answers, read_answers
from parnet_deploy.bench.peers import PEERS, Preparation, base, find_peer, graphs, torch_compile
from parnet_deploy.bench.peers.runner import CallRunner, TimedCallRunner
from parnet_deploy.bench.peers.torch_model import load_network, settings_of
from parnet_deploy.bench.result import Absence
from parnet_deploy.bundle import ModelBundle
from parnet_deploy.errors import BuildError, RunnerError, SpecError, TargetError, UsageError
from parnet_deploy.net import DeployParNet, ParNet
from parnet_deploy.runtime.machine import CudaDriver, Gpu
from parnet_deploy.runtime.timeline import TimesCompute
from parnet_deploy.spec import IMAGES, LOGITS, Array, decode, encode

BATCH = 2
COMPILED = ("torch-compile", "torch-compile-fused")
ON_CPU = [name for name, peer in PEERS.items() if "cpu" in peer.devices and name not in COMPILED]
WINOGRAD = 2e-5  # relative error of float32 with Winograd's transforms; others stay below 2e-6


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def images(workspace: Path, tiny_bundle: ModelBundle) -> Path:
    path = workspace / "images.npz"
    return write_images(path, tiny_bundle.manifest.preprocessing, count=4, seed=0)


@pytest.fixture(scope="module")
def reference(workspace: Path, tiny_bundle: ModelBundle, images: Path) -> Array:
    question = Question(
        model=str(tiny_bundle.path),
        images=str(images),
        count=BATCH,
        answers=str(workspace / "reference.npy"),
    )
    found = read_answers(Path(reference_in_process(question).path))
    assert found is not None
    return found


@pytest.fixture
def asked(workspace: Path, tiny_bundle: ModelBundle, images: Path) -> Preparation:
    return Preparation(
        peer="torch",
        network="tiny",
        model=str(tiny_bundle.path),
        workspace=str(workspace),
        images=str(images),
        batch=BATCH,
    )


def prepared(asked: Preparation, name: str) -> Contestant:
    """What a peer prepares, as it arrives in another process."""
    contestant = PEERS[name].prepare(replace(asked, peer=name))
    return decode(encode(contestant), Contestant)


def feeds_of(contestant: Contestant) -> dict[str, Array]:
    return {IMAGES: read_images(Path(contestant.images), "float32")[:BATCH]}


@pytest.mark.parametrize("name", ON_CPU)
def test_it_answers_as_the_training_form(name: str, asked: Preparation, reference: Array) -> None:
    contestant = prepared(asked, name)
    assert (contestant.group, contestant.network, contestant.devices) == ("peer", "tiny", ("cpu",))
    opened = open_contestant(contestant)
    feeds = feeds_of(contestant)
    first = opened.runner.run(feeds)[LOGITS]
    kept = first.copy()
    parity = compare_answers(first, reference)
    assert parity.max_rel < (WINOGRAD if name == "ncnn" else 2e-6)
    assert parity.same_top1 == BATCH
    assert opened.versions
    assert opened.precision == "fp32"
    opened.runner.run({IMAGES: -feeds[IMAGES]})
    np.testing.assert_array_equal(first, kept, "an answer belongs to whom it was given")
    with pytest.raises(RunnerError, match="is expected"):
        opened.runner.run({IMAGES: feeds[IMAGES][:1]})
    opened.runner.close()
    opened.runner.close()
    with pytest.raises(RunnerError, match="closed"):
        opened.runner.run(feeds)


def test_another_network_is_seen(asked: Preparation, reference: Array, tmp_path: Path) -> None:
    other = replace(asked, model=str(export_tiny(tmp_path / "other", seed=1).path))
    contestant = prepared(replace(other, workspace=str(tmp_path)), "onnxruntime")
    opened = open_contestant(contestant)
    answer = opened.runner.run(feeds_of(contestant))[LOGITS]
    assert compare_answers(answer, reference).max_rel > 1e-2
    opened.runner.close()


@pytest.mark.parametrize("name", ["torch", "mnn"])
def test_prepared_and_run_in_processes_of_their_own(
    name: str, asked: Preparation, reference: Array, tmp_path: Path
) -> None:
    """Of all peers, one that carries torch, and one whose converter prints what it does."""
    graphs.unfused_graph(asked)
    unfused = f"unfused-b{BATCH}"
    shutil.copytree(Path(asked.workspace) / unfused, tmp_path / unfused)
    contestant = prepare_in_process(replace(asked, peer=name, workspace=str(tmp_path)))
    assert isinstance(contestant, Contestant), contestant
    path = tmp_path / "answers.npy"
    worker = worker_of(Assignment(contestant=contestant, batch=BATCH, answers=str(path)))
    try:
        assert worker.open()[0].output == LOGITS
        worker.finish()
    finally:
        worker.kill()
    answers = read_answers(path)
    assert answers is not None
    assert compare_answers(answers[:BATCH], reference).max_rel < 2e-6


def test_the_parent_carries_no_framework() -> None:
    """So that nothing of one takes memory or time from whoever is measured."""
    code = (
        "import sys, parnet_deploy.bench.entries.preparing, parnet_deploy.bench.contest.openers\n"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'openvino', 'ncnn', 'MNN'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PEERS)
def test_a_package_is_missing(
    name: str, asked: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = PEERS[name]
    gone = peer.packages[0]
    module = base._MODULES.get(gone, gone)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda given: None if given == module else find("json")
    )
    device = "cpu" if "cpu" in peer.devices else "cuda:0"
    absence = prepare_in_process(replace(asked, peer=name, device=device))
    assert isinstance(absence, Absence)
    assert (absence.name, absence.network) == (peer.title, "tiny")
    assert absence.reason == f"{gone} is not installed: pip install 'parnet-deploy[{peer.extra}]'"


def test_a_package_within_a_missing_package_is_missing() -> None:
    assert base._importable("json.decoder")
    assert not base._importable("no_such_package_here.core")


@pytest.mark.parametrize("name", ["openvino", "ncnn", "mnn"])
def test_peers_of_the_cpu_do_not_run_on_a_gpu(name: str, asked: Preparation) -> None:
    absence = prepare_in_process(replace(asked, peer=name, device="cuda:0"))
    assert isinstance(absence, Absence)
    assert absence.reason.endswith("runs on cpu only, not on cuda:0")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_peers_of_a_gpu_do_not_run_on_the_cpu(name: str, asked: Preparation) -> None:
    absence = prepare_in_process(replace(asked, peer=name))
    assert isinstance(absence, Absence)
    assert absence.reason.endswith("runs on cuda only, not on cpu")


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = find_peer("torch")
    gpu = Gpu(index=0, name="a GPU", compute_capability="9.0", memory=1)
    monkeypatch.setattr(base, "cuda_driver", lambda: CudaDriver(problem="there is no driver"))
    assert peer.problem("cuda:0") == "there is no driver"
    monkeypatch.setattr(base, "cuda_driver", lambda: CudaDriver(gpus=(gpu,)))
    assert peer.problem("cuda:0", "fp16") is None
    assert peer.problem("cuda:1") == "there is no cuda:1: the driver finds 1"


def test_what_is_asked_for_wrongly(asked: Preparation) -> None:
    with pytest.raises(UsageError, match=r"a peer is one of torch, .*; not 'tensorflow'"):
        prepare_in_process(replace(asked, peer="tensorflow"))
    for device in ("gpu", "cuda", "cuda:x", "cpu:0"):
        with pytest.raises(UsageError, match="a device is cpu or cuda:N"):
            replace(asked, device=device)
    with pytest.raises(UsageError, match="at least one image"):
        replace(asked, batch=0)
    assert "fp32 only on cpu, not in fp16" in str(find_peer("torch").problem("cpu", "fp16"))


@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile_needs_a_compiler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX is 'no-such-compiler', which is not found" in str(PEERS[name].problem("cpu"))
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "g++ or clang++ is not found: install g++" in str(PEERS[name].problem("cpu"))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert PEERS[name].problem("cpu") is None


@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile_is_called_as_it_is_said(
    name: str, asked: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the network and mode, before it answers, and what it makes stays in the workspace."""
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: calls.append((model, mode)) or model)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    contestant = prepared(asked, name)
    assert contestant.settings["mode"] is None
    opened = open_contestant(contestant)
    ((model, mode),) = calls
    assert isinstance(model, DeployParNet if name.endswith("fused") else ParNet)
    assert mode is None
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == Path(asked.workspace)
    opened.runner.close()
    on_gpu = PEERS[name].prepare(replace(asked, peer=name, device="cuda:0"))
    assert on_gpu.settings["mode"] == torch_compile.CUDA_MODE
    assert on_gpu.name.endswith("max-autotune, cudnn.benchmark, cuda:0")


@pytest.mark.slow
@pytest.mark.skipif(
    torch_compile.TORCH_COMPILE.problem("cpu") is not None, reason="there is no C++ compiler"
)
def test_compiled_code_answers_as_the_network(asked: Preparation, tmp_path: Path) -> None:
    """A network of few layers, fused: Inductor compiles C++ for every kind of kernel."""
    small = {"stream_widths": (8,), "stream_blocks": (1,), "last_width": 8, "squeeze": False}
    model = export_tiny(tmp_path / "small", changes=small)
    asked = replace(asked, model=str(model.path), workspace=str(tmp_path))
    eager = open_contestant(prepared(asked, "torch"))
    wanted = eager.runner.run(feeds_of(prepared(asked, "torch")))[LOGITS]
    # In a process of its own, as in a contest: Inductor starts threads and workers that stay.
    answers = tmp_path / "answers.npy"
    held = worker_of(
        Assignment(
            contestant=prepared(asked, "torch-compile-fused"), batch=BATCH, answers=str(answers)
        )
    )
    held.open()
    held.finish()
    given = np.load(answers)[:BATCH]
    assert compare_answers(given, wanted.astype(np.float64)).max_rel < 2e-6
    assert any((tmp_path / "torch-compile-fused-cache").rglob("*.so"))


def test_fused_and_channels_last_are_what_they_say(asked: Preparation) -> None:
    for name, kind, last in (("torch", ParNet, False), ("torch-fused", DeployParNet, True)):
        contestant = prepared(asked, name)
        network = load_network(contestant, settings_of(contestant))
        weight = max(network.parameters(), key=torch.numel)
        assert isinstance(network, kind)
        assert weight.is_contiguous(memory_format=torch.channels_last) is last
        assert weight.dtype == torch.float32


def test_settings_of_a_wrong_type_are_refused(asked: Preparation) -> None:
    contestant = prepared(asked, "torch")
    with pytest.raises(SpecError, match="channels_last"):
        open_contestant(replace(contestant, settings={"channels_last": "yes"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_torch_says_that_it_finds_no_gpu(asked: Preparation) -> None:
    with pytest.raises(TargetError, match="torch finds no cuda:0 here"):
        open_contestant(replace(prepared(asked, "torch"), devices=("cuda:0",)))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="no TensorRT RTX here")
def test_tensorrt_rtx_builds_the_unfused_export(asked: Preparation) -> None:
    """Without a GPU; where there is none it is the opening that says so."""
    contestant = prepared(replace(asked, device="cuda:0"), "tensorrt-rtx")
    assert contestant.opener == "graph"
    assert any(Path(contestant.path).glob("*.plan"))
    assert prepared(replace(asked, device="cuda:0"), "tensorrt-rtx") == contestant
    if not torch.cuda.is_available():
        with pytest.raises(TargetError, match="needs an NVIDIA GPU") as error:
            open_contestant(contestant)
        assert "build it again" not in str(error.value), "there is no command for that"


def test_graphs_are_written_once_and_whole(asked: Preparation, tmp_path: Path) -> None:
    asked = replace(asked, workspace=str(tmp_path))
    path = graphs.unfused_graph(asked)
    before = path.stat().st_mtime_ns
    assert graphs.unfused_graph(asked) == path
    assert path.stat().st_mtime_ns == before
    assert graphs.unfused_graph(replace(asked, batch=1)) != path

    def half(folder: Path) -> None:
        (folder / "begun").write_text("...", encoding="utf-8")
        raise BuildError("no more")

    there = sorted(tmp_path.iterdir())
    with pytest.raises(BuildError, match="no more"):
        graphs.kept(tmp_path, "half", half)
    assert sorted(tmp_path.iterdir()) == there


def test_a_preparation_that_fails_is_an_absence(asked: Preparation, tmp_path: Path) -> None:
    nowhere = replace(asked, peer="ncnn", model=str(tmp_path / "nowhere"))
    absence = prepare_in_process(nowhere)
    assert isinstance(absence, Absence)
    assert absence.name == "ncnn, unfused export, fp32"
    assert absence.reason.startswith(f"there is no bundle at {tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "its preparation ended with signal 11"),
        ("import sys; sys.exit('no luck')", "its preparation ended with status 1: no luck"),
        ("print('not JSON')", "its preparation ended with status 0"),
        ('print(\'{"made": {"name": 1}}\')', "its preparation ended with status 0"),
    ],
    ids=["crash", "words", "noise", "another thing"],
)
def test_a_preparation_that_breaks_is_an_absence(
    code: str, reason: str, asked: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "COMMAND", (sys.executable, "-c", code))
    absence = prepare_in_process(asked)
    assert absence == Absence(name="torch, eager", network="tiny", reason=reason)


def test_a_preparation_without_end_is_an_absence(
    asked: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time; time.sleep(60)"
    monkeypatch.setattr(preparing, "COMMAND", (sys.executable, "-c", code))
    absence = prepare_in_process(asked, seconds=0.2)
    assert isinstance(absence, Absence)
    assert absence.reason == "its preparation took longer than 0.2 seconds"


@pytest.mark.parametrize("end", ["time.sleep(60)", "print('not JSON')"], ids=["late", "done"])
def test_what_a_preparation_has_started_ends_with_it(
    end: str, asked: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a converter that hangs: the contest would run beside it."""
    note = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "quiet = subprocess.DEVNULL\n"
        "child = subprocess.Popen(sleep, stdin=quiet, stdout=quiet, stderr=quiet)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n{end}"
    )
    monkeypatch.setattr(preparing, "COMMAND", (sys.executable, "-c", code))
    assert isinstance(prepare_in_process(asked, seconds=2.0), Absence)
    stat = Path(f"/proc/{note.read_text()}/stat")
    deadline = time.monotonic() + 20
    while stat.exists() and "Z" not in stat.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not stat.exists() or "Z" in stat.read_text().split()


def test_a_reference_that_cannot_be_computed(asked: Preparation, tmp_path: Path) -> None:
    question = Question(model=asked.model, images=asked.images, count=99, answers="nowhere.npy")
    with pytest.raises(BuildError, match="99 images are asked for, and there are 4"):
        reference_in_process(question)


def call_runner(call: Callable[[Array], Array]) -> CallRunner:
    inputs, outputs = base.contracts(1, (2, 2), 3)
    return CallRunner(call, title="a library", inputs=inputs, outputs=outputs)


def test_what_a_library_raises_is_a_runner_error() -> None:
    def fail(images: Array) -> Array:
        raise KeyError("first line\nsecond line")

    feeds = {IMAGES: np.zeros((1, 3, 2, 2), np.float32)}
    with pytest.raises(RunnerError, match=r"^a library failed: .*first line") as error:
        call_runner(fail).run(feeds)
    assert isinstance(error.value.__cause__, KeyError)


def test_only_who_can_tell_compute_apart_is_asked_for_it() -> None:
    inputs, outputs = base.contracts(1, (2, 2), 3)

    def call(images: Array) -> Array:
        return images.reshape(1, -1)[:, :3]

    timed = TimedCallRunner(
        call, lambda images: math.pi, title="a library", inputs=inputs, outputs=outputs
    )
    feeds = {IMAGES: np.zeros((1, 3, 2, 2), np.float32)}
    assert isinstance(timed, TimesCompute)
    assert not isinstance(call_runner(call), TimesCompute)
    assert timed.time_compute(feeds) == math.pi
    assert timed.run(feeds)[LOGITS].shape == (1, 3)
    with pytest.raises(RunnerError, match="is expected"):
        timed.time_compute({IMAGES: np.zeros((1, 3, 2, 3), np.float32)})
    timed.close()
    with pytest.raises(RunnerError, match="closed"):
        timed.time_compute(feeds)


def test_opened_runners_are_closed_with_a_block(asked: Preparation) -> None:
    opened: OpenedRunner = open_contestant(prepared(asked, "torch"))
    assert isinstance(opened.runner, CallRunner)
    with opened.runner as runner:
        runner.run(feeds_of(prepared(asked, "torch")))
    with pytest.raises(RunnerError, match="closed"):
        opened.runner.run(feeds_of(prepared(asked, "torch")))
