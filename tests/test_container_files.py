"""The serving image's files: what can be held without building it, and faults that are found."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
import yaml
from container_files import (
    EXTRAS,
    LOCKS,
    ROOT,
    compose_problems,
    copied,
    dockerfile_problems,
    health_command,
    is_ignored,
    lock_problems,
    pins,
    stages,
)

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()
IGNORED = (ROOT / ".dockerignore").read_text()
TESTED = (ROOT / "requirements.lock").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()


def changed(text: str, old: str, new: str) -> str:
    assert old in text, f"nothing to change: {old}"
    return text.replace(old, new)


def test_the_dockerfile_is_in_order() -> None:
    assert dockerfile_problems(DOCKERFILE) == []
    assert list(stages(DOCKERFILE)) == ["wheels", "packages", "serve"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("USER 10001:10001\n", "", "its user is not a number, or is root"),
        ("USER 10001:10001", "USER 0:0", "its user is not a number, or is root"),
        ("USER 10001:10001", "USER server", "its user is not a number, or is root"),
        ("USER 10001:10001", "USER 10001:10001\nUSER 0", "its user is not a number"),
        ('ENTRYPOINT ["parnet-deploy"]', "ENTRYPOINT parnet-deploy", "its ENTRYPOINT has a shell"),
        ('CMD ["serve", "/engines", "--host", "0.0.0.0"]', "CMD serve /engines", "its CMD has a"),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL", "it is not stopped with SIGTERM"),
        ("HEALTHCHECK", "LABEL health=", "it has no HEALTHCHECK in exec form"),
        ("/v2/health/ready", "/", "does not ask whether it is ready"),
        ("--require-hashes ", "", "installed without hashes"),
        ("--require-hashes --only-binary :all: --no", "--no", "installed without hashes"),
        ("--no-index --no-deps ", "", "installed without hashes"),
        ("ARG BASE=", "ARG BASIS=", "BASE is no build argument"),
        ("FROM ${BASE} AS serve", "FROM python:3 AS serve", "on something else than BASE"),
        ("WORKDIR /\n", "WORKDIR /\nRUN pip install torch\n", "the last stage does more"),
        ("WORKDIR /\n", "WORKDIR /\nCOPY models /models\n", "the last stage does more"),
    ],
)
def test_a_fault_in_the_dockerfile_is_found(old: str, new: str, problem: str) -> None:
    found = dockerfile_problems(changed(DOCKERFILE, old, new))
    assert any(problem in each for each in found), found


def test_one_stage_is_found() -> None:
    start = DOCKERFILE.index("FROM ${BASE} AS wheels")
    end = DOCKERFILE.index("FROM ${BASE} AS serve")
    assert "there is one stage only" in dockerfile_problems(DOCKERFILE[:start] + DOCKERFILE[end:])


@contextmanager
def answering(status: HTTPStatus | None) -> Iterator[int]:
    """A server on loopback that gives one status to those who ask whether it is ready; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v2/health/ready" else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        if status is None:
            server.server_close()
            yield server.server_port
            return
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "healthy"),
    [(HTTPStatus.OK, True), (HTTPStatus.SERVICE_UNAVAILABLE, False), (None, False)],
)
def test_the_health_check_says_what_the_server_says(
    status: HTTPStatus | None, healthy: bool
) -> None:
    _, *arguments = health_command(DOCKERFILE)
    with answering(status) as port:
        command = [sys.executable, *(word.replace("8000", str(port)) for word in arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=30,
            # It asks the server itself, whatever proxy the machine has.
            env={"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
        )
    assert (done.returncode == 0) is healthy, done.stderr


KEPT_OUT = (
    ".git/config",
    ".venv/bin/python",
    "engines/parnet-l/manifest.json",
    "models/parnet-l/model.onnx",
    "runs/s/checkpoint.safetensors",
    "requirements.lock",
    "tests/test_bundle.py",
    "parnet_deploy/__pycache__/errors.cpython-311.pyc",
    "parnet_deploy/cli/__pycache__/main.cpython-311.pyc",
    ".env",
)


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    assert [path for path in KEPT_OUT if not is_ignored(IGNORED, path)] == []
    for source in copied(DOCKERFILE):
        assert (ROOT / source).exists(), source
        assert not is_ignored(IGNORED, source), source
    assert not is_ignored(IGNORED, "parnet_deploy/serve/http/app.py")


@pytest.mark.parametrize(
    ("old", "new", "sent"),
    [
        ("\n*\n", "\n", ".git/config"),
        ("!parnet_deploy\n", "!parnet_deploy\n!engines\n", "engines/parnet-l/manifest.json"),
        ("**/__pycache__\n", "", "parnet_deploy/cli/__pycache__/main.cpython-311.pyc"),
    ],
)
def test_a_fault_in_what_is_sent_is_found(old: str, new: str, sent: str) -> None:
    assert not is_ignored(changed(IGNORED, old, new), sent)
    assert is_ignored(IGNORED, sent)


def test_every_flavour_has_a_lock_and_every_lock_a_flavour() -> None:
    assert {path.name for path in LOCKS.glob("serve-*.lock")} == {
        f"serve-{flavour}.lock" for flavour in EXTRAS
    }


@pytest.mark.parametrize("flavour", EXTRAS)
def test_a_lock_is_in_order(flavour: str) -> None:
    lock = (LOCKS / f"serve-{flavour}.lock").read_text()
    assert lock_problems(lock, flavour, TESTED, PROJECT) == []
    assert "://" not in lock, "no host is named"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("msgspec==", "msgspec>=", "msgspec is not pinned"),
        ("msgspec==", "torch==2.11.0\nmsgspec==", "torch has no hash"),
        ("msgspec==", "torch==2.11.0\nmsgspec==", "torch trains, it does not serve"),
        ("starlette==", "starlette==0.1 ; python_version < '3'\nstar==", "wants starlette"),
        ("starlette==", "starlette==0.9.", "wants starlette>="),
        ("pillow==", "pillow==99.", "the tests ran with"),
        ("onnxruntime==", "onnxruntime==1.", "onnxruntime is 1.1."),
    ],
)
def test_a_fault_in_a_lock_is_found(old: str, new: str, problem: str) -> None:
    lock = changed((LOCKS / "serve-cpu.lock").read_text(), f"\n{old}", f"\n{new}")
    found = lock_problems(lock, "cpu", TESTED, PROJECT)
    assert any(problem in each for each in found), found


def test_flavours_differ_in_what_they_run() -> None:
    names = {
        flavour: {
            pin.requirement.name for pin in pins((LOCKS / f"serve-{flavour}.lock").read_text())
        }
        for flavour in EXTRAS
    }
    for flavour in ("cpu", "openvino", "rtx"):
        assert "onnxruntime-gpu" not in names[flavour], flavour
    assert "cuda-bindings" not in names["cpu"] | names["openvino"]
    assert "openvino" in names["openvino"] - names["cpu"]
    assert "tensorrt-rtx" in names["rtx"]
    assert "nvidia-cudnn-cu13" in names["cuda"] - names["tensorrt"]


def test_what_builds_the_wheel_is_pinned_and_hashed() -> None:
    found = {pin.requirement.name: pin for pin in pins((LOCKS / "build.lock").read_text())}
    assert "hatchling" in found
    assert all(pin.version and pin.hashes for pin in found.values())


def test_compose_is_in_order() -> None:
    assert compose_problems(COMPOSE, DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("read_only: true #", "read_only: false #", "its root file system can be written to"),
        ("        read_only: true\n", "", "the engines can be written to"),
        ("cap_drop: [ALL]", "cap_drop: [NET_RAW]", "it keeps capabilities"),
        ("no-new-privileges:true", "no-new-privileges:false", "it may gain privileges"),
        ("    restart:", "    privileged: true\n    restart:", "it may more: privileged"),
        ("    restart:", "    network_mode: host\n    restart:", "it may more: network_mode"),
        ("127.0.0.1:8000:8000", "8000:8000", "it is open to every network"),
        ("stop_grace_period: 30s", "stop_grace_period: 10s", "it is killed before it may take"),
        ("python:3.11-slim-bookworm", "python:3", "its BASE is not the Dockerfile's"),
        ("${FLAVOUR:-cpu}\n    image", "${FLAVOUR:-rtx}\n    image", "its FLAVOUR is not the"),
        ("    restart:", "    healthcheck: {disable: true}\n    restart:", "it may more: healthch"),
    ],
)
def test_a_fault_in_compose_is_found(old: str, new: str, problem: str) -> None:
    found = compose_problems(changed(COMPOSE, old, new), DOCKERFILE)
    assert any(problem in each for each in found), found


def test_gpus_are_added_to_the_same_service() -> None:
    read = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())
    assert set(read["services"]) == set(yaml.safe_load(COMPOSE)["services"])
    (device,) = read["services"]["parnet-deploy"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
