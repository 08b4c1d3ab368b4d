"""Problems in words: no name is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.verify.problems import NAMED, Problem, counted, in_words, listed
from parnet_deploy.verify.report import JSON_FILE

NAMES = st.lists(st.from_regex(r"[a-z]{3}[0-9]{3}", fullmatch=True), unique=True, max_size=30)


def was(name: str, file: str = "model.onnx", kind: str = "fp16") -> Problem:
    rest = f"built in {kind} in {{files}}, and int8 was asked for"
    return Problem.of(name, ("was", "were"), rest, file)


@given(NAMES)
def test_names_are_all_told_or_counted(names: list[str]) -> None:
    said = listed(names)
    assert all(name in said for name in names[:NAMED])
    if len(names) <= NAMED:
        assert said == ", ".join(names)
    else:
        assert said.endswith(f" and {len(names) - NAMED} more (all are in {JSON_FILE})")


@given(NAMES, st.booleans())
def test_no_name_is_lost_in_a_sentence(names: list[str], alike: bool) -> None:
    problems = [
        was(name) if alike else Problem(name=name, one=f"{name} is off by {number}")
        for number, name in enumerate(names)
    ]
    said = in_words(problems)
    assert bool(said) == bool(names)
    missing = [name for name in names if name not in said]
    assert not missing or f"{len(missing)} more (all are in {JSON_FILE})" in said


def test_what_many_have_is_one_sentence() -> None:
    assert str(was("stem1")) == "stem1 was built in fp16 in model.onnx, and int8 was asked for"
    assert in_words([was("stem1")]) == str(was("stem1"))
    many = in_words([was("stem1"), was("stem2"), was("merge1", kind="fp32")])
    assert many == (
        "stem1, stem2 were built in fp16 in model.onnx, and int8 was asked for; "
        "merge1 was built in fp32 in model.onnx, and int8 was asked for"
    )
    one = in_words([was("stem1", "a.onnx"), was("stem1", "b.onnx"), was("stem1", "c.onnx")])
    assert one == "stem1 was built in fp16 in a.onnx, b.onnx and c.onnx, and int8 was asked for"


def test_sentences_of_their_own_are_told_first_and_the_other_names_after_them() -> None:
    problems = [Problem(name=name, one=f"{name} is {{odd}}") for name in "abcdef"]
    said = "a is {odd}; b is {odd}; c is {odd}; and 3 more, of d, e, f"
    assert in_words(problems) == said


def test_layers_of_rarer_types_are_named() -> None:
    types = {f"layer{number}": "int8" for number in range(9)}
    assert counted(types, " layer") == "9 layers in int8"
    types |= dict.fromkeys("abcde", "fp16") | {"head": "fp32"}
    named = "9 layers in int8, 5 in fp16 (a, b, c, d, e), 1 in fp32 (head)"
    assert counted(types, " layer") == named
    assert counted({"a": "fp32"}, " layer") == "1 layer in fp32"
    assert counted({"a": "fp32", "b": "fp32"}) == "2 in fp32"
    assert counted({}) == ""
