"""A page in a real browser, in front of a server that answers as it is told.

Modules that want it say ``pytest_plugins = ["page_fixtures"]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from browser import Browser, Tab
from page_double import Double


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[Double]:
    double = Double()
    yield double
    double.close()


@pytest.fixture
def tab(browser: Browser, server: Double) -> Iterator[Tab]:
    """An open page; in the end it has asked nobody else and broken no rule of its own."""
    opened = browser.tab()
    opened.open(server.url)
    yield opened
    requests = [each["request"]["url"] for each in opened.happened("Network.requestWillBeSent")]
    assert len(requests) > 0
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} <= {
        server.url,
        f"{server.url}classify?top=5&trace=true",
    }
    assert opened.complaints() == []
    assert opened.run("window.hacked") is None
    opened.close()


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real one: 640x427 pixels, JPEG."""
    source = resources.files("sklearn.datasets.images") / "china.jpg"
    path = tmp_path_factory.mktemp("images") / "china.jpg"
    path.write_bytes(source.read_bytes())
    return path
