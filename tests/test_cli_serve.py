"""``parnet-deploy serve``: a real engine from start to SIGTERM."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve_process import Served, load, started

from parnet_deploy.bundle import EngineBundle
from parnet_deploy.cli.predict import Prediction, predict
from parnet_deploy.cli.serve import KEY_VARIABLE
from parnet_deploy.images import load_image
from parnet_deploy.runtime import awake, open_runner


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def serve(engine: Path, *options: object, cwd: Path | None = None):
    words = ["-m", "parnet_deploy", "serve", engine, "--port", 0, *options]
    return started([str(word) for word in words], cwd=cwd)


def wait_until_ready(served: Served) -> str:
    line = served.wait_for("ready: ")
    served.port = int(re.findall(r"http://127.0.0.1:(\d+)", line)[0])
    return line


def files(*folders: Path) -> dict[Path, tuple[int, float]]:
    return {
        path: (path.stat().st_size, path.stat().st_mtime)
        for folder in folders
        for path in folder.rglob("*")
    }


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


# --- while it runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tiny_engine: EngineBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the engine, which ends well and has written nothing."""
    folder = tmp_path_factory.mktemp("served")
    before = files(folder, tiny_engine.path)
    with serve(tiny_engine.path, "--name", "net", "--grpc-port", 0, cwd=folder) as served:
        line = wait_until_ready(served)
        assert f"{tiny_engine.path} (onnxruntime, fp32)" in line
        yield served
        served.stop()
        assert served.status() == 0
    assert not any("Traceback" in line for line in served.log)
    assert any("UNTRAINED" in line for line in served.log), "what the engine warns of"
    assert files(folder, tiny_engine.path) == before


@pytest.mark.parametrize("path", ["/", "/metrics", "/v2", "/v2/models/stats", "/v2/models/net"])
def test_documents(served: Served, path: str) -> None:
    assert served.ask("GET", path)[0] == 200


def test_classification(served: Served, tiny_engine: EngineBundle, photo: Path) -> None:
    status, _, body = served.ask("POST", "/classify?top=3", photo.read_bytes())
    assert status == 200
    with open_runner(tiny_engine) as runner:
        (expected,) = predict(tiny_engine, runner, [photo], 3)
    assert isinstance(expected, Prediction)
    found = json.loads(body)["predictions"]
    assert [each["label"] for each in found] == [each.label for each in expected.guesses]
    np.testing.assert_allclose(
        [each["probability"] for each in found],
        [each.probability for each in expected.guesses],
        rtol=1e-6,
    )


def test_inference(served: Served, tiny_engine: EngineBundle, photo: Path) -> None:
    pixels, expected = _run(tiny_engine, photo)
    tensor = {"name": "images", "datatype": "FP32", "shape": list(pixels.shape)}
    output = {"name": "logits", "parameters": {"binary_data": True}}
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": pixels.nbytes}}],
            "outputs": [output],
        }
    ).encode()
    status, headers, body = served.ask(
        "POST",
        "/v2/models/net/infer",
        head + pixels.tobytes(),
        {"Inference-Header-Content-Length": str(len(head))},
    )
    assert status == 200
    data = body[int(headers["inference-header-content-length"]) :]
    found = np.frombuffer(data, np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_an_unmodified_client(served: Served, tiny_engine: EngineBundle, photo: Path) -> None:
    """What tritonclient sends and reads, compressed, too."""
    client_module = pytest.importorskip("tritonclient.http")
    pixels, expected = _run(tiny_engine, photo)
    with contextlib.closing(
        client_module.InferenceServerClient(f"127.0.0.1:{served.port}")
    ) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("net")
        assert client.get_server_metadata()["name"] == "parnet-deploy"
        assert client.get_model_metadata("net")["name"] == "net"
        assert client.get_model_config("net")["name"] == "net"
        before = _answered(client)
        tensor = client_module.InferInput("images", list(pixels.shape), "FP32")
        for binary in (True, False):
            tensor.set_data_from_numpy(pixels, binary_data=binary)
            for coding in (None, "gzip", "deflate"):
                answer = client.infer(
                    "net", [tensor], request_id="7", request_compression_algorithm=coding
                )
                np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-6)
        assert _answered(client) == before + 6


def test_grpc_beside_http(served: Served, tiny_engine: EngineBundle, photo: Path) -> None:
    client_module = pytest.importorskip("tritonclient.grpc")
    pixels, expected = _run(tiny_engine, photo)
    port = served.wait_for("gRPC on port ").partition("gRPC on port ")[2].partition(";")[0]
    with contextlib.closing(client_module.InferenceServerClient(f"127.0.0.1:{port}")) as client:
        tensor = client_module.InferInput("images", list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        answer = client.infer("net", [tensor])
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected)


def _answered(client: Any) -> int:
    stats = client.get_inference_statistics("net")["model_stats"][0]
    return int(stats["inference_stats"]["success"]["count"])


def _run(engine: EngineBundle, photo: Path) -> tuple[np.ndarray, np.ndarray]:
    """A photograph's pixels, and the logits that the engine gives for them."""
    pixels = load_image(photo, engine.manifest.preprocessing)
    with open_runner(engine) as runner:
        return pixels, runner.run({"images": pixels})["logits"]


ODD_IMAGES = {
    "rotated": (Image.new("RGB", (40, 20), "red"), "JPEG", {"exif": rotated()}),
    "cmyk": (Image.new("CMYK", (40, 20)), "JPEG", {}),
    "one pixel": (Image.new("RGB", (1, 1)), "PNG", {}),
    "grey with transparency": (Image.new("LA", (40, 20)), "PNG", {}),
}


@pytest.mark.parametrize(("image", "kind", "options"), ODD_IMAGES.values(), ids=ODD_IMAGES)
def test_odd_images(served: Served, image: Image.Image, kind: str, options: dict) -> None:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    status, _, body = served.ask("POST", "/classify", stream.getvalue())
    assert (status, len(json.loads(body).get("predictions", ()))) == (200, 5)


@pytest.mark.parametrize("cut", [lambda data: data[: len(data) // 2], lambda data: b"no image"])
def test_what_is_no_image(served: Served, photo: Path, cut: Callable[[bytes], bytes]) -> None:
    status, _, body = served.ask("POST", "/classify", cut(photo.read_bytes()))
    assert status == 400
    assert list(json.loads(body)) == ["error"]
    assert b"/" not in body, "no path"


# --- from start to end --------------------------------------------------------------------------


def test_sigterm_under_load(tiny_engine: EngineBundle, photo: Path) -> None:
    """Everything that was accepted is answered, by a real engine."""
    with serve(tiny_engine.path, "--log-format", "json") as served:
        ready = json.loads(served.wait_for('"event":"ready"'))
        served.port = int(ready["url"].rpartition(":")[2])
        with load(served, "/classify", photo.read_bytes(), clients=6) as found:
            end = time.monotonic() + 30
            while found.statuses[200] < 50:
                assert time.monotonic() < end, found
                time.sleep(0.01)
            with found.lock:
                found.stopped_at = time.monotonic()
                served.stop()
            assert served.status() == 0
    assert not found.unanswered
    assert set(found.statuses) <= {200, 503}
    lines = [json.loads(line) for line in served.log]
    logged = [line["status"] for line in lines if line.get("event") == "request"]
    assert logged.count(200) == found.statuses[200], "a line for every answer"


def test_a_key_from_the_environment(
    tiny_engine: EngineBundle, monkeypatch: pytest.MonkeyPatch, photo: Path
) -> None:
    """It is named in what is said, and not given away."""
    monkeypatch.setenv(KEY_VARIABLE, "a-key")
    with serve(tiny_engine.path, "--host", "0.0.0.0") as served:
        line = wait_until_ready(served)
        assert 'curl -H "Authorization: Bearer KEY"' in line
        data = photo.read_bytes()
        assert served.ask("POST", "/classify", data)[0] == 401
        assert served.ask("POST", "/classify", data, {"Authorization": "Bearer a-key"})[0] == 200
        assert served.ask("GET", "/v2/health/ready")[0] == 200
    assert not any("a-key" in line or "may use this server" in line for line in served.log)


SLOW_DISK = """
import sys, threading
from parnet_deploy.bundle import opening
opening._check_file = lambda *arguments: threading.Event().wait()
from parnet_deploy.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
"""The command, with a disk that never reads an engine's files to their end."""


def test_liveness_is_answered_while_an_engine_is_looked_through(tiny_engine: EngineBundle) -> None:
    """And SIGTERM is heard."""
    with started(["-c", SLOW_DISK, "serve", str(tiny_engine.path), "--port", "0"]) as served:
        line = served.wait_for("listening at ")
        served.port = int(re.findall(r"http://127.0.0.1:(\d+)", line)[0])
        assert served.ask("GET", "/v2/health/live")[0] == 200
        assert served.ask("GET", "/v2/health/ready")[0] == 503
        served.stop()
        assert served.status() == 0


@pytest.mark.skipif(not os.access(awake.DEVICE, os.W_OK), reason="no device, or not for us")
def test_processors_kept_awake(tiny_engine: EngineBundle) -> None:
    with serve(tiny_engine.path, "--keep-awake") as served:
        wait_until_ready(served)
        held = Path(f"/proc/{served.process.pid}/fd")
        assert str(awake.DEVICE) in {os.path.realpath(each) for each in held.iterdir()}
        served.stop()
        assert served.status() == 0
