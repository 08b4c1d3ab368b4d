"""A server that has a page and answers as it is told, and what a browser shows of it."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import ABSENT, PROGRAM, Tab

from parnet_deploy.bundle import BatchRange
from parnet_deploy.runtime.timeline import Span
from parnet_deploy.serve.http.page import CONTENT_TYPE, page
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Preprocessing, TensorSpec

HACK = "<img src=x.png onerror='window.hacked = 1'><script>window.hacked = 1</script>"

SIGNATURE = Signature(
    name="parnet-s-onnxruntime-cpu-split",
    inputs=(TensorSpec(name="images_nchw", shape=(1, 3, 224, 224), dtype="float32"),),
    outputs=(TensorSpec(name="logits", shape=(1, 1000), dtype="float32"),),
    batch=BatchRange(),
    labels=tuple(f"class {number}" for number in range(1000)),
    preprocessing=Preprocessing(size=(224, 224)),
    softmax=False,
    backend="onnxruntime",
    precision="fp32",
)

SPANS = (
    Span(stage="upload", device="cuda:0", start=0.0, end=0.0001),
    Span(stage="stream1", device="cuda:0", start=0.0001, end=0.0006),
    Span(stage="stream2", device="cuda:1", start=0.0002, end=0.0008),
    Span(stage="stream3", device="cuda:2", start=0.0003, end=0.0007),
    Span(stage="fusion", device="cuda:0", start=0.0008, end=0.0011),
    Span(stage="download", device="cuda:0", start=0.0011, end=0.0012),
)

ANSWER: dict[str, Any] = {
    "model": SIGNATURE.name,
    "predictions": [
        {"label": "palace", "index": 698, "probability": 0.8125},
        {"label": "boathouse", "index": 449, "probability": 0.125},
        {"label": "lakeside, lakeshore", "index": 975, "probability": 0.03},
        {"label": "bell cote, bell cot", "index": 442, "probability": 0.02},
        {"label": "stupa, tope", "index": 832, "probability": 0.00002},
    ],
    "timing": {"prepare": 0.00431, "queue": 0.00002, "infer": 0.0012, "total": 0.00571},
    "spans": [asdict(span) for span in SPANS],
}


@dataclass(kw_only=True)
class Reply:
    """One answer to ``/classify``; it waits for `ready`."""

    status: int = 200
    body: bytes | dict[str, Any] = field(default_factory=lambda: ANSWER)
    headers: dict[str, str] = field(default_factory=dict)
    ready: threading.Event | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Double:
    """Serves a page below a prefix, and the replies that it was given, in order."""

    def __init__(self) -> None:
        self.page = page(SIGNATURE)
        self.replies: list[Reply] = []
        self.asked: list[Asked] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.origin}/behind/a/prefix/"

    def close(self) -> None:
        """Stop; a second time it does nothing."""
        for reply in self.replies:
            if reply.ready:
                reply.ready.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def questions(self) -> list[Asked]:
        return [each for each in self.asked if each.method == "POST"]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._keep(b"")
                found = self.path == "/behind/a/prefix/"
                policy = {"Content-Security-Policy": double.page.policy}
                body = double.page.body if found else b""
                self._send(200 if found else 404, body, CONTENT_TYPE, policy)

            def do_POST(self) -> None:
                self._keep(self.rfile.read(int(self.headers["Content-Length"])))
                reply = double.replies[len(double.questions()) - 1]
                if reply.ready:
                    assert reply.ready.wait(60)
                body = reply.body
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self._send(reply.status, data, "application/json", reply.headers)
                except ConnectionError:
                    assert reply.ready  # a browser that has lost interest

            def log_message(self, *_: object) -> None:
                pass

            def _keep(self, body: bytes) -> None:
                double.asked.append(
                    Asked(
                        method=self.command,
                        path=self.path,
                        headers={name.lower(): value for name, value in self.headers.items()},
                        body=body,
                    )
                )

            def _send(self, status: int, body: bytes, kind: str, others: dict[str, str]) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in others.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        return Handler


needs_browser = pytest.mark.skipif(PROGRAM is None, reason=ABSENT)


def text(tab: Tab, selector: str) -> str:
    found = tab.run(f"document.querySelector({json.dumps(selector)}).innerText")
    assert isinstance(found, str)
    return found


def shown(tab: Tab, *selectors: str) -> list[bool]:
    return [
        tab.run(f"document.querySelector({json.dumps(each)}).checkVisibility()")
        for each in selectors
    ]


def answered(tab: Tab) -> None:
    tab.until("document.querySelector('#labels').checkVisibility()")


def refused(tab: Tab) -> str:
    """What the page says went wrong."""
    tab.until("document.querySelector('#problem').checkVisibility()")
    return text(tab, "#reason")


def click(tab: Tab, selector: str) -> None:
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def drop(tab: Tab, path: Path, *, x: int = 200, y: int = 200) -> None:
    """Drag a file over the page and let go of it, as the browser itself would report it."""
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for step in ("dragEnter", "dragOver", "drop"):
        tab.call("Input.dispatchDragEvent", type=step, x=x, y=y, data=data)
