"""``scripts/triton-test``: its gates can fail, and a server that does not behave is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_engines import cpu_engine, stamp_engine

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.runtime import Runner, open_runner
from parnet_deploy.serve.triton import RepositorySettings, write_repository

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import triton_checks as checks  # noqa: E402
import triton_server as server  # noqa: E402

sys.path.remove(str(SCRIPTS))

STREAMS = ("net-stream1", "net-stream2", "net-stream3")


@pytest.fixture(scope="module")
def served(
    tiny_bundle_dynamic: ModelBundle, tmp_path_factory: pytest.TempPathFactory
) -> checks.Served:
    folder = tmp_path_factory.mktemp("served")
    engine = cpu_engine(tiny_bundle_dynamic, folder / "engine", split=True)
    write_repository(engine, folder / "repository", RepositorySettings(name="net", delay=10))
    return checks.Served(name="net", engine=engine, repository=folder / "repository")


class Client:
    """Answers as the engine does, or as it is told to."""

    def __init__(self, runner: Runner, change: Callable[[Any], Any] = lambda x: x) -> None:
        self._runner = runner
        self._change = change
        self.runs: Callable[[], None] = lambda: None

    def infer(self, name: str, inputs: Any, outputs: Any, model_version: str) -> Any:
        (given,) = inputs
        tensor = given._get_tensor()
        images = np.frombuffer(given._get_binary_data(), np.float32).reshape(tensor["shape"])
        if len(images) > 4 or tuple(tensor["shape"])[1:] != (3, 64, 64):
            raise checks.InferenceServerException("it does not fit")
        self.runs()
        logits = self._runner.run({"images": images})["logits"]
        classes = outputs[0]._get_tensor()["parameters"].get("classification", 0)
        if classes:
            logits = np.array(
                [[f"{row[n]}:{n}:class {n}".encode() for n in np.argsort(-row)[:classes]]
                 for row in logits], dtype=object
            )  # fmt: skip
        changed = self._change(logits)

        class Answer:
            def as_numpy(self, _: str) -> Any:
                return changed

        return Answer()


@pytest.fixture(scope="module")
def runner(served: checks.Served) -> Iterator[Runner]:
    opened = open_runner(served.engine)
    yield opened
    opened.close()


def note(notes: Path, model: str, batches: list[int], begin: float = 0, end: float = 1) -> None:
    with (notes / f"{model}-1.jsonl").open("a") as file:
        line = {"model": model, "begin": begin, "end": end, "batches": batches}
        file.write(json.dumps(line) + "\n")


# -- the gates


def test_answers_that_equal_the_engines_pass(served: checks.Served, runner: Runner) -> None:
    client = Client(runner)
    assert checks.check_answers(client, served) == "within 0.0e+00"
    assert checks.check_classes(client, served).startswith("such as ")
    checks.check_refusals(client, served)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda logits: logits * np.float32(1.01), "differs by"),
        (lambda logits: logits[:, :-1], "an answer is float32"),
        (lambda logits: logits.astype(np.float64), "an answer is float64"),
        (lambda logits: logits * np.float32(np.nan), "differs by nan"),
        (lambda logits: logits[::-1], "differs by"),
    ],
    ids=["values", "shape", "type", "nan", "images exchanged"],
)
def test_wrong_answers_are_noticed(
    served: checks.Served, runner: Runner, change: Callable[[Any], Any], said: str
) -> None:
    with pytest.raises(checks.CheckError, match=said):
        checks.check_answers(Client(runner, change), served)


def test_equal_answers_to_different_images_would_mean_nothing() -> None:
    with pytest.raises(checks.CheckError, match="comparing means nothing"):
        checks.refuse_equal(np.ones((1, 7)), np.ones((1, 7)))


def test_wrong_classes_are_noticed(served: checks.Served, runner: Runner) -> None:
    with pytest.raises(checks.CheckError, match="was given for class"):
        checks.check_classes(Client(runner, lambda found: found[:, ::-1]), served)

    def other_label(found: Any) -> Any:
        return np.vectorize(lambda b: b.replace(b"class", b"klass"), otypes=[object])(found)

    with pytest.raises(checks.CheckError, match="klass"):
        checks.check_classes(Client(runner, other_label), served)


def test_lost_fields_are_named() -> None:
    written = {"a": 1, "b": {"c": [1, {"d": "x"}]}}
    assert list(checks.lost_fields(written, {**written, "more": 1})) == []
    found = list(checks.lost_fields(written, {"a": 2, "b": {"c": [1, {"d": "y"}]}}))
    assert [line.split(" ")[0] for line in found] == ["a", "b.c[1].d"]
    assert list(checks.lost_fields({"a": [1]}, {"a": [1, 2]})) == [
        "a ([1] was written, [1, 2] found)"
    ]


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([[1]] * 200, "no two requests were put together"),
        ([[1, 1]] * 99 + [[1]], "ran 199 requests"),
        ([[1, 2, 2]] + [[1]] * 197, "a batch of 5, more than 4"),
        ([[1, 1]] * 100, ""),
    ],
)
def test_batches_are_counted_without_the_warm_up(
    served: checks.Served, tmp_path: Path, batches: list[list[int]], said: str
) -> None:
    for model in served.stages:
        note(tmp_path, model, [1] * 8)  # the warm-up's, which proves nothing
        for batch in batches:
            note(tmp_path, model, batch)
    before = dict.fromkeys(served.stages, 1)
    if said:
        with pytest.raises(checks.CheckError, match=said):
            checks.check_batches(served, tmp_path, before)
    else:
        assert checks.check_batches(served, tmp_path, before) == "up to 2 at once"


@pytest.mark.parametrize(
    ("times", "said"),
    [
        ([(0, 10), (1, 11), (9, 12)], ""),
        ([(0, 10), (10, 20), (9, 19)], "'net-stream1' and 'net-stream2' ran one after the other"),
        ([(0, 10), (1, 11), (20, 30)], "'net-stream1' and 'net-stream3' ran one after the other"),
    ],
)
def test_streams_one_after_the_other_are_noticed(
    served: checks.Served,
    runner: Runner,
    tmp_path: Path,
    times: list[tuple[float, float]],
    said: str,
) -> None:
    client = Client(runner)

    def run() -> None:
        assert (tmp_path / "pause").exists()
        for model, (begin, end) in zip(STREAMS, times, strict=True):
            note(tmp_path, model, [1], begin, end)

    client.runs = run
    if said:
        with pytest.raises(checks.CheckError, match=said):
            checks.check_overlap(client, served, tmp_path)
    else:
        assert checks.check_overlap(client, served, tmp_path) == "3 of them"
    assert not (tmp_path / "pause").exists()


# -- the stand-in


def test_one_line_of_each_configuration_is_replaced_and_nothing_else(
    served: checks.Served, tmp_path: Path
) -> None:
    copy = server.stand_in(served.repository, tmp_path / "copy")

    def files(folder: Path) -> dict[str, bytes]:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    before, after = files(served.repository), files(copy)
    assert after.keys() - before.keys() == {f"{name}/1/model.py" for name in served.stages}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{name}/config.pbtxt" for name in served.stages}
    for name in changed:
        lines = zip(before[name].splitlines(), after[name].splitlines(), strict=True)
        assert [pair for pair in lines if pair[0] != pair[1]] == [
            (b'platform: "onnxruntime_onnx"', b'backend: "python"')
        ]


def test_nothing_stands_in_for_plans(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    engine = stamp_engine(tiny_bundle, tmp_path / "e", split=False)
    write_repository(engine, tmp_path / "r", RepositorySettings())
    with pytest.raises(server.TritonError, match="e is no onnxruntime_onnx model"):
        server.stand_in(tmp_path / "r", tmp_path / "copy")


# -- the server

DOUBLE = """#!{python}
import http.server, signal, sys
print("E1126 00:00:00 it is not well", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
port = next(int(word.split("=")[1]) for word in sys.argv if word.startswith("--http-port="))
signal.signal(signal.SIGTERM, {on_term})
{begin}
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def double(tmp_path: Path) -> Callable[..., server.Triton]:
    """A program that is as well or as badly behaved as it is told to be."""

    def make(on_term: str = "lambda *_: sys.exit(0)", begin: str = "") -> server.Triton:
        binary = tmp_path / "tritonserver"
        binary.write_text(DOUBLE.format(python=sys.executable, on_term=on_term, begin=begin))
        binary.chmod(0o755)
        return server.Triton(
            binary=binary, backends=tmp_path, libraries=(tmp_path,), python=tmp_path
        )

    return make


def test_a_server_that_behaves(double: Callable[..., server.Triton], tmp_path: Path) -> None:
    with server.running(double(), [tmp_path], tmp_path / "log") as address:
        assert address.startswith("127.0.0.1:")
        with urllib.request.urlopen(f"http://{address}/v2/health/ready") as answer:
            assert answer.status == 200
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{address}/")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"begin": "sys.exit(3)"}, "ended with status 3 before it was ready: .*it is not well"),
        ({"begin": "import time; time.sleep(60)"}, "not ready after 1 s"),
        ({"on_term": "lambda *_: sys.exit(4)"}, "ended with status 4"),
        ({"on_term": "signal.SIG_IGN"}, "did not stop within 1 s of SIGTERM"),
    ],
    ids=["ends", "never ready", "status", "does not stop"],
)
def test_a_server_that_does_not_behave_is_named_and_gone(
    given: dict[str, str],
    said: str,
    double: Callable[..., server.Triton],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "START_SECONDS", 1)
    monkeypatch.setattr(server, "STOP_SECONDS", 1)
    triton = double(**given)
    with (
        pytest.raises(server.TritonError, match=said),
        server.running(triton, [tmp_path], tmp_path / "log"),
    ):
        pass
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(triton.binary) not in left.stdout


def test_a_wheel_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        failed = "pip" in command
        said = "ERROR: No matching distribution found\n" if failed else ""
        return subprocess.CompletedProcess(command, int(failed), stdout="", stderr=said)

    monkeypatch.setattr(server.subprocess, "run", run)
    said = "nvidia-pytriton==.* cannot be had, and with it no Triton: No matching distribution"
    with pytest.raises(server.TritonError, match=said):
        server.install(tmp_path)
    assert not (tmp_path / "installed").exists()


FOLDER = os.environ.get("TRITON_FOLDER")


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="TRITON_FOLDER names no folder with a Triton")
def test_a_real_triton_answers_as_the_engines() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "triton_test.py", "--folder", str(FOLDER)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "a swapped cut is served, and noticed" in done.stdout
    assert done.stdout.splitlines()[-1] == "27 passed, 0 failed"
