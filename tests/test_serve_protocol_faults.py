"""Bodies that are no requests of the Open Inference Protocol, and what the messages say."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_protocol import (
    a_signature,
    an_image,
    binary_body,
    binary_input,
    body_of,
    json_input,
    parsed,
    refused,
)

from parnet_deploy.serve.protocol import parse_request
from parnet_deploy.spec import Array

HUGE = 2**63

# The JSON itself


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "the body is empty, and an inference request is expected"),
        (b" ", "cannot be read as JSON"),
        (b"\xff\xd8\xff\xe0 a JPEG", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b'{"inputs": [', "cannot be read as JSON"),
        (b'{"inputs": []} {}', "cannot be read as JSON"),
        (b"\xef\xbb\xbf{}", "cannot be read as JSON"),
        (b'{"inputs": NaN}', "cannot be read as JSON"),
        (b'{"id": "\xff\xfe", "inputs": []}', "cannot be read as JSON"),
        (b'{"inputs": [{"name": "\xed\xa0\x80"}]}', "cannot be read as JSON"),
        (b"{'inputs': []}", "cannot be read as JSON"),
        (b"null", "Expected `object`, got `null`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": {}}', "Expected `array`, got `object` - at `$.inputs`"),
        (b'{"inputs": [7]}', "Expected `object`, got `int` - at `$.inputs[0]`"),
        (b'{"inputs": [{}]}', "missing required field `name` - at `$.inputs[0]`"),
        (b'{"inputs": []}', "the input 'images' is missing"),
        (b'{"inputs": [], "id": 7}', "got `int` - at `$.id`"),
        (b'{"inputs": [], "outputs": {}}', "got `object` - at `$.outputs`"),
        (b'{"inputs": [], "parameters": []}', "got `array` - at `$.parameters`"),
        (
            b'{"inputs": [], "parameters": {"binary_data_output": "yes"}}',
            "at `$.parameters.binary_data_output`",
        ),
    ],
)
def test_json_that_is_no_request(body: bytes, part: str) -> None:
    refused(lambda: parse_request(body, None, a_signature()), part)


@pytest.mark.parametrize(
    ("member", "value", "part"),
    [
        ("name", None, "Expected `str`, got `null`"),
        ("shape", "1,3,4,6", "Expected `array`, got `str`"),
        (
            "shape",
            [1, 3, 4, "6"],
            "the shape of input 'images' cannot be read: Expected `int`, got",
        ),
        ("shape", [1, 3, 4, 6.5], "Expected `int`, got `float`"),
        ("shape", [True, 3, 4, 6], "Expected `int`, got `bool`"),
        ("datatype", 32, "Expected `str`, got `int`"),
        ("parameters", [], "got `array` - at `$.inputs[0].parameters`"),
        ("parameters", {"binary_data_size": "288"}, "binary_data_size`"),
        ("parameters", {"binary_data_size": 288.5}, "binary_data_size`"),
        ("data", {}, "Expected `array`, got `object`"),
        ("data", "AAAA", "Expected `array`, got `str`"),
        ("data", ["1"] * 72, "Expected `float`, got `str`"),
        ("data", [None] * 72, "Expected `float`, got `null`"),
        ("data", [True] * 72, "Expected `float`, got `bool`"),
    ],
)
def test_a_member_of_another_type(member: str, value: object, part: str) -> None:
    message = {"inputs": [json_input(an_image(), **{member: value})]}
    refused(lambda: parsed(message), part)


@pytest.mark.parametrize("digits", [20, 400, 4000, 5000, 100_000])
@pytest.mark.parametrize("member", ["shape", "size", "data", "classification"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_numbers_beyond_64_bits(digits: int, member: str, dtype: str) -> None:
    """Only the value of a float may be one; beyond 4300 digits Python itself reads none."""
    huge = "9" * digits
    image = an_image(dtype=dtype)
    texts = {
        "shape": json.dumps(json_input(image, shape=["HUGE", 3, 4, 6])),
        "size": json.dumps(binary_input(image, parameters={"binary_data_size": "HUGE"})),
        "data": json.dumps(json_input(image, data=["HUGE"] * 72)),
        "classification": json.dumps(json_input(image)),
    }
    outputs = [{"name": "logits", "parameters": {"classification": "-HUGE"}}]
    message = f'{{"inputs": [{texts[member]}]'
    message += f', "outputs": {json.dumps(outputs)}}}' if member == "classification" else "}"
    body = message.replace('"HUGE"', huge).replace('"-HUGE"', f"-{huge}").encode()
    if (member, digits, dtype) == ("data", 20, "float32"):
        assert parse_request(body, None, a_signature()).batch == 1
    else:
        refused(lambda: parse_request(body, None, a_signature(dtype)))


DEEP = """
import json, sys, threading
sys.path.insert(0, sys.argv[1])
from serve_protocol import a_signature, an_image, json_input
from parnet_deploy.errors import RequestError
from parnet_deploy.serve.protocol import parse_request

N = 200_000
DEEP = ("[" * N + "]" * N, '{"a":' * N + "1" + "}" * N, "[" * N)
IMAGE = an_image()
MESSAGES = (
    "DEEP",
    {"inputs": "DEEP"},
    {"unknown": "DEEP", "inputs": []},
    {"parameters": {"mine": "DEEP"}, "inputs": []},
    {"inputs": [json_input(IMAGE, data="DEEP")]},
    {"inputs": [json_input(IMAGE, parameters={"shared_memory_region": "DEEP"})]},
)

def main():
    for deep in DEEP:
        for message in MESSAGES:
            body = json.dumps(message).replace('"DEEP"', deep).encode()
            try:
                parse_request(body, None, a_signature())
            except RequestError as exc:
                assert exc.status == 400
                told.append(str(exc))

told = []
main()
thread = threading.Thread(target=main)
thread.start()
thread.join()
assert len(told) == 36, told
assert sum("nested too deeply" in text for text in told) > 12, told
print("alive")
"""


def test_json_nested_200_000_deep_does_not_end_the_process() -> None:
    program = [sys.executable, "-c", DEEP, str(Path(__file__).parent)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# Lengths


@pytest.mark.parametrize(
    ("length", "part"),
    [
        (-1, "Inference-Header-Content-Length is -1, and the body has "),
        (-HUGE, "-9223372036854775808"),
        (10_000, "Inference-Header-Content-Length is 10000, and the body has "),
        (10**400, "..., and the body has "),
        (0, "the body is empty"),
        (1, "cannot be read as JSON"),
    ],
)
def test_a_header_length_that_cannot_be(length: int, part: str) -> None:
    body, _ = binary_body(an_image())
    refused(lambda: parse_request(body, length, a_signature()), part)


@pytest.mark.parametrize("off", [-1, 1])
def test_a_header_length_that_is_one_off(off: int) -> None:
    body, length = binary_body(an_image())
    refused(lambda: parse_request(body, length + off, a_signature()), "cannot be read as JSON")


def test_binary_data_without_a_header_length() -> None:
    body, length = binary_body(an_image())
    refused(lambda: parse_request(body, None, a_signature()), "cannot be read as JSON")
    refused(
        lambda: parse_request(body[:length], None, a_signature()),
        "0 bytes are left behind the JSON; Inference-Header-Content-Length tells where",
    )


@pytest.mark.parametrize("cut", [1, 4, 287, 288])
def test_a_truncated_body(cut: int) -> None:
    body, length = binary_body(an_image())
    refused(
        lambda: parse_request(body[:-cut], length, a_signature()),
        f"has a binary_data_size of 288, and {288 - cut} bytes are left behind the JSON",
    )


def test_bytes_left_behind_the_last_tensor() -> None:
    body, length = binary_body(an_image())
    refused(
        lambda: parse_request(body + b"\0" * 5, length, a_signature()),
        "5 bytes are left behind the last input's data",
    )
    body, length = body_of({"inputs": [json_input(an_image())]}, b"123")
    refused(lambda: parse_request(body, length, a_signature()), "3 bytes are left behind")


@pytest.mark.parametrize("size", [0, 4, 287, 289, 292, 576])
def test_a_size_that_is_not_the_shapes(size: int) -> None:
    tensor = binary_input(an_image(), parameters={"binary_data_size": size})
    refused(
        lambda: parsed({"inputs": [tensor]}, b"\0" * size),
        f"has {size} bytes of data, and its shape [1, 3, 4, 6] takes 288 in FP32",
    )


@pytest.mark.parametrize("size", [-1, -288, 289, HUGE, 2**64 + 288])
def test_a_size_that_lies(size: int) -> None:
    tensor = binary_input(an_image(), parameters={"binary_data_size": size})
    refused(
        lambda: parsed({"inputs": [tensor]}, an_image().tobytes()),
        f"has a binary_data_size of {size}, and 288 bytes are left",
    )


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ([], "are 0 elements, and its shape [1, 3, 4, 6] takes 72"),
        ([1.0] * 71, "are 71 elements, and its shape [1, 3, 4, 6] takes 72"),
        ([1.0] * 73, "are 73 elements"),
        ([[1.0] * 72], "are nested 2 deep, and a flat list or one nested as its shape"),
        ([[[[]]]], "have shape [1, 1, 1, 0], and its shape [1, 3, 4, 6] takes 72"),
        (np.zeros((1, 4, 6, 3)).tolist(), "have shape [1, 4, 6, 3]"),
        ([[[[1.0, 2.0], [3.0]]]], "are lists of different lengths"),
        ([[[[1.0, 2.0], 3.0]]], "Expected `array`, got `float`"),
        ([[[[[1.0]]]]], "are nested 5 deep"),
    ],
)
def test_data_that_are_not_the_shapes(data: list[Any], part: str) -> None:
    refused(lambda: parsed({"inputs": [json_input(an_image(), data=data)]}), part)


MANY = 200_000
PIXELS = {"datatype": "FP32", "shape": [1, 3, 4, 6]}
FILES = {"datatype": "BYTES", "shape": [2]}


@pytest.mark.parametrize(
    ("tensor", "data", "part"),
    [
        (PIXELS, "[" + "1," * MANY + "1]", f"are {MANY + 1} elements, and its shape"),
        (PIXELS, "[" + "1 ,\n" * MANY + "1]", f"are {MANY + 1} elements, and its shape"),
        (PIXELS, "[[[[" + "],[" * MANY + "]]]]", f"are {MANY + 1} elements"),
        (PIXELS, "[" + "[[[1]]]," * MANY + "[[[1]]]]", f"are {MANY + 1} elements"),
        (PIXELS, "[[[[" + "],[" * 72 + "]]]]", "are 73 elements"),
        (PIXELS, "[" + "[[[1]]]," * 71 + "[[[1]]]]", "are 217 lists, more than any of shape"),
        (PIXELS, "[" + "1," * MANY + '""]', "are 73 elements or more"),
        (FILES, "[" + '"",' * MANY + '""]', "are 3 elements or more, and its shape [2] takes 2"),
        (FILES, '["\\",", ' + '"a,\\"",' * MANY + '""]', "are 3 elements or more"),
        (FILES, '["", "' + "a," * MANY + '"]', "image 1 is not base64"),
        (FILES, '["", "' + '\\"' * MANY + '"]', "image 1 is not base64"),
    ],
)
def test_more_data_than_the_shape_takes_is_not_decoded(
    tensor: dict[str, object], data: str, part: str
) -> None:
    """Memory: copies of the JSON, and what the shape takes; lists of it would be 4 to 40 times."""
    head = json.dumps({"name": "images", **tensor})[:-1]
    content = f'{{"inputs": [{head}, "data": {data}}}]}}'.encode()
    tracemalloc.start()
    try:
        refused(lambda: parse_request(content, None, a_signature()), part)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(content) + 65536
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("start", "many", "end", "part"),
    [
        (
            '{"inputs": [{"name": "images", "datatype": "FP32", "shape": [',
            "300,",
            "1]}]}",
            "bytes of JSON, and no shape is so long",
        ),
        (
            '{"inputs": [',
            '{"name":"images","datatype":"FP32","shape":[1]},',
            '{"name":"images","datatype":"FP32","shape":[1]}]}',
            f"{MANY + 1} inputs are given",
        ),
    ],
)
def test_very_many_axes_and_inputs_are_not_looked_at(
    start: str, many: str, end: str, part: str
) -> None:
    """The axes took 25 times their JSON in memory: mostly for a message."""
    content = f"{start}{many * MANY}{end}".encode()
    tracemalloc.start()
    try:
        refused(lambda: parse_request(content, None, a_signature()), part)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content)
    finally:
        tracemalloc.stop()


def test_data_in_both_places_or_in_none() -> None:
    image = an_image()
    both = binary_input(image, data=image.ravel().tolist())
    expected = "either data or binary_data_size is expected"
    refused(lambda: parsed({"inputs": [both]}, image.tobytes()), "has both", expected)
    empty = binary_input(image, data=[])
    refused(lambda: parsed({"inputs": [empty]}, image.tobytes()), "has both", expected)
    for nothing in ({"parameters": {}}, {"parameters": None}, {"data": None, "parameters": {}}):
        tensor = binary_input(image, **nothing)  # type: ignore[arg-type]
        refused(lambda tensor=tensor: parsed({"inputs": [tensor]}), "has no data", expected)


def test_what_was_refused_leaves_nothing_behind() -> None:
    """One decoder serves all requests: a refused one does not change the next."""
    image: Array = an_image()
    good = binary_body(image)
    for bad in (b"{", b'{"inputs": [', good[0][:-1]):
        refused(lambda bad=bad: parse_request(bad, min(len(bad), good[1]), a_signature()))
        assert parse_request(*good, a_signature()).batch == 1
