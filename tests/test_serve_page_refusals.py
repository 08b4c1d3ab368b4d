"""The page at ``/`` when something is wrong, and against those who want it to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Browser, Tab
from page_double import (
    ANSWER,
    HACK,
    Double,
    Reply,
    answered,
    click,
    needs_browser,
    refused,
    shown,
    text,
)

pytest_plugins = ["page_fixtures"]
pytestmark = needs_browser

LOCKED = {"error": "an API key is needed"}


def test_what_the_server_refuses_is_told_in_its_words_and_mended_by_another_image(
    tab: Tab, server: Double, photograph: Path
) -> None:
    server.replies = [Reply(), Reply(status=400, body={"error": "the image is damaged"}), Reply()]
    tab.choose("#file", photograph)
    answered(tab)
    tab.choose("#file", photograph)
    assert refused(tab) == "the image is damaged"
    assert shown(tab, "#labels", "#times", "#stages", "#unlock", "#again") == [False] * 5
    tab.choose("#file", photograph)
    answered(tab)
    assert shown(tab, "#problem", "#times", "#stages") == [False, True, True]


def test_a_full_server_can_be_asked_again(tab: Tab, server: Double, photograph: Path) -> None:
    full = Reply(status=503, body={"error": "all are busy"}, headers={"Retry-After": "2"})
    server.replies = [full, Reply(status=503, body=b""), Reply()]
    tab.choose("#file", photograph)
    assert refused(tab) == "all are busy"
    assert text(tab, "#later") == "The server asks to wait for 2 s."
    click(tab, "#again")
    tab.until("document.querySelector('#reason').innerText.includes('503')")
    assert refused(tab) == "The server answered 503 and did not say why."
    assert shown(tab, "#later") == [False]
    click(tab, "#again")
    answered(tab)
    assert [each.body for each in server.questions()] == [photograph.read_bytes()] * 3


STRANGE = (
    (Reply(status=502, body=b"<h1>Bad Gateway</h1>"), "answered 502", True),
    (Reply(status=404, body={"error": 7}), "answered 404", False),
    (Reply(status=504, body={"error": "too late"}), "too late", True),
    (Reply(status=413, body={"error": "too large"}), "too large", False),
    (Reply(body=b"<h1>Welcome to this hotel</h1>"), "not one of parnet-deploy", True),
    (Reply(body=b"null"), "not one of parnet-deploy", True),
    (Reply(body={"predictions": []}), "not one of parnet-deploy", True),
)


def test_strange_answers_are_told_in_a_sentence(tab: Tab, server: Double, photograph: Path) -> None:
    server.replies = [reply for reply, _, _ in STRANGE]
    for _, words, again in STRANGE:
        tab.choose("#file", photograph)
        assert words in refused(tab)
        assert shown(tab, "#again") == [again]


def test_a_server_that_is_gone_is_told_in_a_sentence(
    browser: Browser, server: Double, photograph: Path
) -> None:
    tab = browser.tab()
    tab.open(server.url)
    server.close()
    tab.choose("#file", photograph)
    assert refused(tab).startswith("The server did not answer")
    assert shown(tab, "#again") == [True]
    tab.close()


def test_an_api_key_is_asked_for_and_kept_as_long_as_the_tab(
    tab: Tab, server: Double, photograph: Path
) -> None:
    locked = Reply(status=401, body=LOCKED)
    server.replies = [locked, locked, Reply(), Reply()]
    tab.choose("#file", photograph)
    assert refused(tab) == LOCKED["error"]
    assert shown(tab, "#unlock", "#again") == [True, False]
    for count, key in enumerate(("wrong", "right-key"), start=2):
        tab.until("document.activeElement.id === 'key' && document.activeElement.value === ''")
        assert tab.run("document.activeElement.type") == "password"
        tab.call("Input.insertText", text=f" {key} ")
        tab.press("Enter")
        tab.until("document.querySelector('#result').getAttribute('aria-busy') === 'false'")
        assert len(server.questions()) == count
    answered(tab)
    assert tab.run("Object.values(sessionStorage)") == ["right-key"]
    assert tab.run("localStorage.length") == 0
    assert tab.call("Network.getCookies")["cookies"] == []
    tab.open(server.url)
    assert shown(tab, "#labels") == [False]
    tab.choose("#file", photograph)
    answered(tab)
    keys = [each.headers.get("authorization") for each in server.questions()]
    assert keys == [None, "Bearer wrong", "Bearer right-key", "Bearer right-key"]


def test_a_key_that_no_header_can_carry_is_not_sent(
    tab: Tab, server: Double, photograph: Path
) -> None:
    server.replies = [Reply(status=401, body=LOCKED)]
    tab.choose("#file", photograph)
    refused(tab)
    for key in ("", "   ", "two words", "Schlüssel"):
        tab.run(f"document.querySelector('#key').value = {json.dumps(key)}")
        click(tab, "#unlock button")
        assert tab.run("document.querySelector('#key').validity.valid") is False
    assert len(server.questions()) == 1


def test_texts_are_never_markup(tab: Tab, server: Double, photograph: Path, tmp_path: Path) -> None:
    span = {"stage": HACK, "device": HACK, "start": 0.0, "end": 0.001}
    best = {"label": HACK, "index": 0, "probability": 1.0}
    hostile = ANSWER | {"predictions": [best], "spans": [span, span | {"stage": "other"}]}
    server.replies = [Reply(body=hostile), Reply(status=400, body={"error": HACK})]
    elements = tab.run("document.querySelectorAll('img, script').length")
    name = "<img src=x.png onerror='window.hacked = 1'>.jpg"
    (tmp_path / name).write_bytes(photograph.read_bytes())
    tab.choose("#file", tmp_path / name)
    answered(tab)
    assert text(tab, "#labels span") == HACK
    assert HACK in text(tab, "#lanes th")
    assert text(tab, "#lanes small") == HACK
    assert text(tab, "#caption").startswith(name)
    tab.choose("#file", photograph)
    assert refused(tab) == HACK
    assert tab.run("document.querySelectorAll('img, script').length") == elements


def test_what_is_smuggled_into_the_page_does_not_run(browser: Browser, server: Double) -> None:
    smuggled = f"{HACK}<p style='color: red'></p></body>".encode()
    server.page = replace(server.page, body=server.page.body.replace(b"</body>", smuggled))
    tab = browser.tab()
    tab.open(server.url)
    assert tab.run("document.querySelectorAll('script').length") == 2
    assert "Content Security Policy" in " ".join(tab.complaints())
    with pytest.raises(AssertionError, match="TrustedHTML"):
        tab.run(f"document.body.innerHTML = {json.dumps(HACK)}")
    assert tab.run("window.hacked") is None
    assert [each.path for each in server.asked] == ["/behind/a/prefix/"]
    tab.close()


def test_a_script_that_is_not_the_hashed_one_does_not_run(browser: Browser, server: Double) -> None:
    altered = server.page.body.replace(b"const COLOURS = 6;", b"const COLOURS = 7;")
    assert altered != server.page.body
    server.page = replace(server.page, body=altered)
    tab = browser.tab()
    tab.open(server.url)
    assert text(tab, "#curl") == ""  # the script would have filled it
    assert "Content Security Policy" in " ".join(tab.complaints())
    tab.close()
