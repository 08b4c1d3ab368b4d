"""Requests of every kind, and what makes an answer to them the right one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving_soak.network import Array, Picture, differ

_LENGTH = "Inference-Header-Content-Length"

HANG_UP = "hang up"
"""The kind of requests that are begun and left."""


class WrongError(Exception):
    """An answer is not the right one: one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back."""

    status: int
    fields: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request and the check of its answer.

    Attributes:
        kind: of what kind it is, for the counts.
        method: GET or POST.
        path: with its query.
        body: after the header.
        fields: of the header, beside its own id.
        check: raises `WrongError` where an answer is not the right one.
    """

    kind: str
    method: str
    path: str
    body: bytes
    check: Callable[[Reply], None]
    fields: Mapping[str, str] = field(default_factory=dict)


def draw(rng: random.Random, model: str, pictures: Sequence[Picture], name: str) -> Request:
    """A request of a random kind.

    Args:
        rng: decides.
        model: its name.
        pictures: one of them is asked about.
        name: the request's own, which its answer has to repeat.
    """
    (make,) = rng.choices(tuple(_KINDS), tuple(_KINDS.values()))
    return make(rng, model, rng.choice(pictures), name)


def _tensor(rng: random.Random, model: str, picture: Picture, name: str) -> Request:
    data = picture.array.tobytes()
    return _infer("tensor in bytes", model, name, picture, "FP32", picture.array.shape, data)


def _file(rng: random.Random, model: str, picture: Picture, name: str) -> Request:
    data = len(picture.file).to_bytes(4, "little") + picture.file
    return _infer("image file as a tensor", model, name, picture, "BYTES", (1,), data)


def _numbers(rng: random.Random, model: str, picture: Picture, name: str) -> Request:
    tensor = {
        "name": "images",
        "shape": picture.array.shape,
        "datatype": "FP32",
        "data": picture.array.ravel().tolist(),
    }
    body = json.dumps({"id": name, "inputs": [tensor]}).encode()

    def check(reply: Reply) -> None:
        output = _output(reply, reply.body, name)
        _compare(np.array(output["data"], np.float32), picture.logits)

    return Request(
        kind="tensor in JSON",
        method="POST",
        path=f"/v2/models/{model}/infer",
        body=body,
        check=check,
    )


def _classify(rng: random.Random, model: str, picture: Picture, name: str) -> Request:
    powers = np.exp(picture.logits - picture.logits.max())
    right = powers / powers.sum()

    def check(reply: Reply) -> None:
        _expect(reply, 200)
        guesses = json.loads(reply.body)["predictions"]
        if len(guesses) != len(right):
            raise WrongError(f"{len(guesses)} classes came, and {len(right)} were asked for")
        found = np.zeros_like(right)
        for guess in guesses:
            found[guess["index"]] = guess["probability"]
        _compare(np.log(np.maximum(found, 1e-30)), np.log(right))

    path = f"/classify?top={len(right)}"
    return Request(kind="classify", method="POST", path=path, body=picture.file, check=check)


def _wrong(rng: random.Random, model: str, picture: Picture, name: str) -> Request:
    infer, data = f"/v2/models/{model}/infer", picture.array.tobytes()
    head = _head(name, "FP32", picture.array.shape, len(data))
    longer = _head(name, "FP32", picture.array.shape, len(data) + 4)
    turned = _head(name, "FP32", (1, *picture.array.shape[:0:-1]), len(data))
    method, path, body, length, status = rng.choice(
        [
            ("POST", infer, head + data[:-8], len(head), 400),
            ("POST", infer, longer + data, len(longer), 400),
            ("POST", infer, turned + data, len(turned), 400),
            ("POST", infer, head + data, len(head) + len(data) + 1, 400),
            ("POST", infer, data[:999], None, 400),
            ("POST", infer, b'{"inputs": 7}', None, 400),
            ("POST", infer, b"[" * 5000, None, 400),
            ("POST", "/v2/models/no-such-model/infer", head + data, len(head), 404),
            ("POST", "/classify", picture.file[: len(picture.file) // 2], None, 400),
            ("POST", "/classify", b"this is no image", None, 400),
            ("POST", "/classify?top=0", picture.file, None, 400),
            ("GET", infer, b"", None, 405),
            ("GET", "/nothing/here", b"", None, 404),
        ]
    )

    def check(reply: Reply) -> None:
        _expect(reply, status)
        if not json.loads(reply.body)["error"]:
            raise WrongError("an error says nothing")

    fields = {} if length is None else {_LENGTH: str(length)}
    return Request(
        kind="wrong request", method=method, path=path, body=body, check=check, fields=fields
    )


def _hang_up(rng: random.Random, model: str, picture: Picture, name: str) -> Request:
    make = rng.choice((_tensor, _numbers, _classify))
    request = make(rng, model, picture, name)

    def check(reply: Reply) -> None:
        raise WrongError("nobody waited for an answer")

    return Request(
        kind=HANG_UP,
        method=request.method,
        path=request.path,
        body=request.body,
        check=check,
        fields=request.fields,
    )


_KINDS = {_tensor: 40, _numbers: 15, _file: 5, _classify: 20, _wrong: 12, _hang_up: 8}
"""What is asked, and how often in a hundred requests."""


def _infer(
    kind: str,
    model: str,
    name: str,
    picture: Picture,
    datatype: str,
    shape: Sequence[int],
    data: bytes,
) -> Request:
    head = _head(name, datatype, shape, len(data))

    def check(reply: Reply) -> None:
        length = int(reply.fields.get(_LENGTH.lower(), "0"))
        _output(reply, reply.body[:length] or reply.body, name)
        _compare(np.frombuffer(reply.body[length:], "<f4"), picture.logits)

    return Request(
        kind=kind,
        method="POST",
        path=f"/v2/models/{model}/infer",
        body=head + data,
        check=check,
        fields={_LENGTH: str(len(head))},
    )


def _head(name: str, datatype: str, shape: Sequence[int], size: int) -> bytes:
    tensor = {
        "name": "images",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": size},
    }
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    return json.dumps({"id": name, "inputs": [tensor], "outputs": outputs}).encode()


def _output(reply: Reply, head: bytes, name: str) -> dict[str, list[float]]:
    """The output in the JSON of an answer that is one to this request."""
    _expect(reply, 200)
    said = json.loads(head)
    if said["id"] != name:
        raise WrongError(f"the answer is to {said['id']!r}")
    output: dict[str, list[float]] = said["outputs"][0]
    return output


def _expect(reply: Reply, status: int) -> None:
    if reply.status != status:
        said = reply.body[:200].decode(errors="replace")
        raise WrongError(f"{status} was expected, and {reply.status} came: {said}")


def _compare(found: Array, right: Array) -> None:
    if differ(found, right):
        raise WrongError("the answer's numbers are not those of its image")
