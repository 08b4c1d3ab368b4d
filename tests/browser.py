"""A real Chromium without a screen, driven over a pipe.

It speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) on file
descriptors 3 and 4: JSON messages, each ended by a NUL. That needs no package and opens no port.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
ABSENT = "no Chromium here: install Debian's package 'chromium'"

_PATIENCE = 60.0  # seconds; what is waited for takes a fraction of one, but on a busy machine
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
    "--disable-component-update",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# The pipes' ends become 3 and 4, whatever they are here.
_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One browser; `tab` opens a page of its own in it, which shares nothing with the others."""

    def __init__(self) -> None:
        assert PROGRAM, ABSENT
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (its_in, self._out), (self._in, its_out) = _pipe(), _pipe()
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        flags = [*_FLAGS, *root, f"--user-data-dir={self._profile.name}/profile", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(its_in), str(its_out), PROGRAM, *flags],
            pass_fds=(its_in, its_out),
            env={**os.environ, "HOME": self._profile.name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(its_in)
        os.close(its_out)
        self._number = 0
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Do something, and give its result. What happens meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]  # type: ignore[no-any-return]
            self.events.append(answer)

    def tab(self) -> Tab:
        """A new page with storage and permissions of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return Tab(self, attached["sessionId"], context)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], _PATIENCE)
            assert ready, f"Chromium said nothing for {_PATIENCE:.0f} s"
            data = os.read(self._in, 1 << 20)
            assert data, f"Chromium has ended with status {self._process.wait()}"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]


class Tab:
    """A page: what it shows, asks for and complains about."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Go to a page, and wait until it and its script are there."""
        before = len(self._told("Page.loadEventFired"))
        self.call("Page.navigate", url=url)
        wait_for(lambda: len(self.happened("Page.loadEventFired")) > before, url)

    def run(self, script: str) -> Any:
        """The value of an expression (or what its promise becomes), as JSON carries it."""
        found = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait until an expression is true; its value."""
        return wait_for(lambda: self.run(condition), condition)

    def press(self, key: str) -> None:
        """Press and release a key: ``Tab``, ``Enter``, or one that stands for itself."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}.get(key, ord(key[0]))
        text = {"Enter": "\r", "Tab": "", "Escape": ""}.get(key, key)
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an ``<input type=file>``, as its dialogue does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(each) for each in files], nodeId=node)

    def happened(self, method: str) -> list[dict[str, Any]]:
        """What was told of this page so far under one of the protocol's names."""
        self.call("Page.getLayoutMetrics")  # whatever was told before its answer is read by then
        return self._told(method)

    def complaints(self) -> list[str]:
        """Policy violations, exceptions, warnings; not that an answer had an error's status."""
        entries = [each["entry"] for each in self.happened("Log.entryAdded")]
        logged = [each["text"] for each in entries if each["source"] != "network"]
        issues = [str(each["issue"]) for each in self.happened("Audits.issueAdded")]
        raised = self.happened("Runtime.exceptionThrown")
        said = self.happened("Runtime.consoleAPICalled")
        return logged + issues + [str(each) for each in raised + said]

    def picture(self) -> bytes:
        """A screenshot of all of the page, PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        shot = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )
        return base64.b64decode(shot["data"])

    def look(self, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """The size of the window, and light or dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _told(self, method: str) -> list[dict[str, Any]]:
        mine = (e for e in self._browser.events if e.get("sessionId") == self._session)
        return [event["params"] for event in mine if event["method"] == method]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true; that answer."""
    end = time.monotonic() + _PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.02)
    return answer


def _pipe() -> tuple[int, int]:
    """A pipe's reading and writing end, neither of which is descriptor 3 or 4."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
