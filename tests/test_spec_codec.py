"""Values as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.spec import decode, encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    place: str
    failed: dict[str, str]
    names: tuple[str, ...]


@given(st.text(), st.dictionaries(st.text(), st.text()), st.lists(st.text()))
def test_texts_come_back(place: str, failed: dict[str, str], names: list[str]) -> None:
    value = Found(place=place, failed=failed, names=tuple(names))
    assert decode(encode(value), Found) == value


def test_a_files_name_that_is_no_utf8_is_written_out() -> None:
    """A training that skipped such an image could not write its result."""
    name = os.fsdecode(b"caf\xe9.png")
    value = Found(place=name, failed={name: f"{name} is damaged"}, names=("\xe9", name))
    assert json.loads(encode(value)) == {
        "place": r"caf\udce9.png",
        "failed": {r"caf\udce9.png": r"caf\udce9.png is damaged"},
        "names": ["\xe9", r"caf\udce9.png"],
    }
