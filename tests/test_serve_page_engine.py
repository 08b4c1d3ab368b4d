"""The page in a real browser, in front of the real server with a real engine split into streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from page_double import answered, needs_browser, refused, shown, text
from serve_process import started

from parnet_deploy.bundle import ModelBundle
from parnet_deploy.engine import BuildOptions, build_engine, make_builder

pytest_plugins = ["page_fixtures"]

KEY = "open-sesame"
STAGES = ["stream1", "stream2", "stream3", "fusion"]


@pytest.fixture(scope="module")
def engine(tiny_bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    final = tmp_path_factory.mktemp("engines") / "tiny-split"
    builder = make_builder("onnxruntime", BuildOptions(provider="cpu", threads=1), split=True)
    return build_engine(tiny_bundle, final, builder, split=True).path


@pytest.mark.slow
@needs_browser
def test_from_a_photograph_to_the_streams_of_a_real_engine(
    browser: Browser, engine: Path, photograph: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    words = ["-m", "parnet_deploy", "serve", engine, "--port", 0, "--api-key-file", key]
    with started([str(word) for word in words]) as server:
        ready = server.wait_for("ready: ")
        port = ready.partition("http://127.0.0.1:")[2].partition(";")[0]
        tab = browser.tab()
        tab.open(f"http://127.0.0.1:{port}/")
        assert text(tab, "h1") == "tiny-split"
        tab.choose("#file", photograph)
        assert "key" in refused(tab)
        tab.until("document.activeElement.id === 'key'")
        tab.call("Input.insertText", text=KEY)
        tab.press("Enter")
        answered(tab)
        assert tab.run("document.querySelectorAll('#labels li').length") == 5
        rows = "[...document.querySelectorAll('#lanes th')].map((each) => each.firstChild.data)"
        assert sorted(tab.run(rows)) == sorted(STAGES)
        assert tab.run(rows)[-1] == "fusion"
        assert "at the same time" in text(tab, "#overlap")
        tab.choose("#file", key)
        assert "not an image" in refused(tab)
        assert shown(tab, "#again") == [False]
        asked = [each["request"]["url"] for each in tab.happened("Network.requestWillBeSent")]
        page, *others = [url for url in asked if not url.startswith(("data:", "blob:"))]
        assert page == f"http://127.0.0.1:{port}/"
        assert set(others) == {f"{page}classify?top=5&trace=true"}
        assert tab.complaints() == []
        tab.close()
        server.stop()
        assert server.status() == 0
