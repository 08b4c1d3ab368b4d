"""The page at ``/`` in use: ways to give it an image, keys, names, screens."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, Tab, wait_for
from page_double import (
    ANSWER,
    SIGNATURE,
    Double,
    Reply,
    answered,
    click,
    drop,
    needs_browser,
    refused,
    shown,
    text,
)
from PIL import Image

from parnet_deploy.serve.http.page import page

pytest_plugins = ["page_fixtures"]
pytestmark = needs_browser


def test_a_dropped_image_is_sent_as_it_is_and_shown(
    tab: Tab, server: Double, photograph: Path
) -> None:
    server.replies = [Reply()]
    drop(tab, photograph)
    answered(tab)
    (asked,) = server.questions()
    assert asked.path == "/behind/a/prefix/classify?top=5&trace=true"
    assert asked.body == photograph.read_bytes()
    assert asked.headers["content-type"] == "image/jpeg"
    assert "authorization" not in asked.headers
    tab.until("document.querySelector('#image').naturalWidth === 640")
    assert text(tab, "#caption") == "china.jpg, 197 kB, 640x427"
    assert shown(tab, "#image", "#problem", "#status") == [True, False, False]


def test_an_image_that_misses_its_place_does_not_replace_the_page(
    tab: Tab, server: Double, photograph: Path
) -> None:
    server.replies = [Reply()]
    tab.look(width=1100, height=900)
    drop(tab, photograph, x=1000, y=880)
    answered(tab)
    assert tab.run("location.href") == server.url


def test_a_dropped_text_is_not_taken_for_an_image(tab: Tab, server: Double) -> None:
    item = {"mimeType": "text/plain", "data": "http://elsewhere/cat.jpg"}
    data = {"items": [item], "dragOperationsMask": 1}
    for step in ("dragEnter", "dragOver", "drop"):
        tab.call("Input.dispatchDragEvent", type=step, x=200, y=200, data=data)
    assert "not a file" in refused(tab)
    assert shown(tab, "#again") == [False]
    assert server.questions() == []


def test_an_image_can_be_pasted_even_one_that_browsers_cannot_show(
    tab: Tab, server: Double
) -> None:
    server.replies = [Reply()]
    tab.run(
        "const [none, data] = [new DataTransfer(), new DataTransfer()];"
        "data.items.add(new File(['not shown by any browser'], 'scan.tiff'));"
        "for (const clipboardData of [none, data])"
        "  document.dispatchEvent(new ClipboardEvent('paste', { clipboardData }));"
    )
    answered(tab)
    assert [each.body for each in server.questions()] == [b"not shown by any browser"]
    tab.until("document.querySelector('#caption').innerText.endsWith('cannot show it')")
    assert shown(tab, "#image", "#labels") == [False, True]


def test_another_image_takes_the_place_of_one_that_is_under_way(
    tab: Tab, server: Double, photograph: Path, tmp_path: Path
) -> None:
    late, soon = threading.Event(), threading.Event()
    slow = ANSWER | {"predictions": [{"label": "the first", "index": 0, "probability": 1.0}]}
    server.replies = [Reply(body=slow, ready=late), Reply(ready=soon)]
    second = tmp_path / "second.png"
    Image.new("RGB", (3, 2)).save(second)
    tab.choose("#file", photograph)
    wait_for(server.questions, "the first question")
    assert text(tab, "#status") == "Asking the network …"
    assert tab.run("document.querySelector('#result').getAttribute('aria-busy')") == "true"
    tab.choose("#file", second)
    wait_for(lambda: len(server.questions()) == 2, "the second question")
    failed = tab.happened("Network.loadingFailed")
    assert [each["canceled"] for each in failed] == [True]
    assert shown(tab, "#problem", "#status") == [False, True]
    soon.set()
    answered(tab)
    late.set()
    assert text(tab, "#labels span") == "palace"
    assert text(tab, "#caption").startswith("second.png")
    assert tab.run("document.querySelector('#result').getAttribute('aria-busy')") == "false"


def test_a_picture_can_be_taken_with_the_camera(tab: Tab, server: Double) -> None:
    server.replies = [Reply()]
    click(tab, "#camera")
    tab.until("document.querySelector('#viewfinder').open")
    tab.until("!document.querySelector('#shoot').disabled")
    assert tab.run("document.activeElement.id") == "shoot"
    tab.run("window.tracks = document.querySelector('#video').srcObject.getTracks(); 0")
    click(tab, "#shoot")
    answered(tab)
    (asked,) = server.questions()
    picture = Image.open(io.BytesIO(asked.body))
    assert picture.format == "JPEG"
    assert picture.size[0] > 100
    assert np.asarray(picture).std() > 5  # the double of a camera shows a picture
    tab.until("window.tracks.every((track) => track.readyState === 'ended')")
    assert shown(tab, "#viewfinder") == [False]


@pytest.mark.parametrize(
    ("name", "words"),
    [("NotAllowedError", "may not be used"), ("NotFoundError", "No camera was found")],
)
def test_a_camera_that_cannot_be_used_is_told_in_a_sentence(
    tab: Tab, name: str, words: str
) -> None:
    tab.run(
        "navigator.mediaDevices.getUserMedia ="
        f" () => Promise.reject(new DOMException('', '{name}')); 0"
    )
    click(tab, "#camera")
    assert words in refused(tab)
    assert shown(tab, "#again", "#viewfinder") == [False, False]


def test_a_keyboard_is_enough(tab: Tab) -> None:
    tab.call("Page.setInterceptFileChooserDialog", enabled=True)
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "file"
    assert tab.run("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    tab.press("Enter")
    wait_for(lambda: tab.happened("Page.fileChooserOpened"), "the dialogue that chooses a file")
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "camera"


def test_everything_that_can_be_used_has_a_name(tab: Tab, server: Double, photograph: Path) -> None:
    server.replies = [Reply(), Reply(status=401, body={"error": "an API key is needed"})]
    found = set()
    for wait in (answered, refused):
        tab.choose("#file", photograph)
        wait(tab)
        for node in tab.call("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if role in {"button", "textbox", "image", "region", "list"} and not node["ignored"]:
                found.add((role, node["name"]["value"]))
    assert all(name.strip() for _, name in found), found
    assert found >= {
        ("button", "Drop an image here, paste one, or choose a file."),
        ("button", "Take a picture"),
        ("button", "Send again with this key"),
        ("textbox", "API key"),
        ("image", "china.jpg"),
        ("image", "0.1000 to 0.6000 ms"),
        ("list", "The best labels"),
        ("region", "Where the time went"),
        ("region", "The stages"),
    }


def test_it_fits_a_narrow_screen(browser: Browser, server: Double, photograph: Path) -> None:
    long = "a" * 90
    server.page = page(replace(SIGNATURE, name="parnet-" * 20, backend=long))
    best = {"label": long, "index": 0, "probability": 1.0}
    span = {"stage": long, "device": long, "start": 0.0, "end": 0.1}
    wide = ANSWER | {"predictions": [best], "spans": [span, span | {"stage": "b"}]}
    server.replies = [Reply(body=wide), Reply(status=400, body={"error": long})]
    tab = browser.tab()
    tab.look(width=320)
    tab.open(server.url)
    for wait in (answered, refused):
        tab.choose("#file", photograph)
        wait(tab)
        assert tab.run("document.documentElement.scrollWidth") <= 320
    tab.close()


@pytest.mark.parametrize(("dark", "paper"), [(False, (251, 251, 249)), (True, (20, 23, 26))])
def test_it_is_light_or_dark_as_the_reader_wants(
    tab: Tab, dark: bool, paper: tuple[int, int, int]
) -> None:
    tab.look(dark=dark)
    picture = np.asarray(Image.open(io.BytesIO(tab.picture())).convert("RGB")).astype(int)
    assert tuple(picture[2, 2]) == paper
    difference = np.abs(picture - paper).max(axis=2)
    assert np.median(difference) < 10
    assert difference.max() > 150  # the words
