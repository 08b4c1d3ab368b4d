"""Requests as bytes, and what makes an answer to them the right one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serving_contest.connection import Answer, AnswerError, request_of

Array = npt.NDArray[Any]
Kind = Literal["infer", "logits", "classes"]

TOLERANCE = 1e-4
"""Of the largest logit."""

TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A request, and what the right answer to it says.

    Attributes:
        request: all of its bytes.
        kind: how the answer is written: as the protocol's binary output, as bytes of logits and
            nothing else, or as JSON with the likeliest classes.
        logits: (classes,), what the engine itself gives.
    """

    request: bytes
    kind: Kind
    logits: Array

    def check(self, answer: Answer) -> None:
        """Compare an answer.

        Raises:
            AnswerError: it is not the right one.
        """
        if answer.status != 200:
            raise AnswerError(f"the answer is {answer.status}: {answer.body[:200]!r}")
        _CHECKS[self.kind](self, answer)


def infer_question(
    model: str, datatype: str, shape: Sequence[int], data: bytes, logits: Array
) -> Question:
    """A request of the Open Inference Protocol with a binary tensor, answered with one.

    Args:
        model: what the server calls it.
        datatype: of the input, in the protocol's words.
        shape: of the input.
        data: its bytes.
        logits: the right answer.
    """
    tensor = {
        "name": "images",
        "shape": list(shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(data)},
    }
    wanted = {"name": "logits", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    fields = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    request = request_of(f"/v2/models/{model}/infer", head + data, fields)
    return Question(request=request, kind="infer", logits=logits)


def file_bytes(data: bytes) -> bytes:
    """A file as the only element of a BYTES tensor: its length in four bytes, then itself."""
    return len(data).to_bytes(4, "little") + data


def body_question(
    path: str,
    body: bytes,
    kind: Kind,
    logits: Array,
    content_type: str = "application/octet-stream",
) -> Question:
    """A request whose body is an array or a file and nothing else."""
    request = request_of(path, body, {"Content-Type": content_type})
    return Question(request=request, kind=kind, logits=logits)


def upload_question(path: str, data: bytes, logits: Array) -> Question:
    """A form with a file in it, as a browser sends one."""
    boundary = "----parnet-0123456789"
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="file"; filename="cat.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={boundary}"
    return body_question(path, body, "classes", logits, content_type)


def differ(first: Array, second: Array) -> bool:
    """Whether logits are too different to be those of one image."""
    if first.shape != second.shape or not np.isfinite(first).all():
        return True
    return bool(np.abs(first - second).max() > TOLERANCE * np.abs(second).max())


def _check_infer(question: Question, answer: Answer) -> None:
    length = int(answer.fields.get("inference-header-content-length", "-1"))
    if not 0 < length <= len(answer.body):
        raise AnswerError("the answer does not say where its JSON ends")
    said = json.loads(answer.body[:length])["outputs"][0]
    if said["name"] != "logits" or said["datatype"] != "FP32":
        raise AnswerError(f"the answer's output is {said['name']} of {said['datatype']}")
    _check_logits(question, answer.body[length:])


def _check_raw(question: Question, answer: Answer) -> None:
    _check_logits(question, answer.body)


def _check_logits(question: Question, data: bytes) -> None:
    if len(data) % 4 or differ(np.frombuffer(data, "<f4"), question.logits):
        raise AnswerError("the answer's logits are not the engine's")


def _check_classes(question: Question, answer: Answer) -> None:
    powers = np.exp(question.logits - question.logits.max())
    expected = powers / powers.sum()
    found = json.loads(answer.body)["predictions"]
    if len(found) != TOP:
        raise AnswerError(f"the answer has {len(found)} classes instead of {TOP}")
    likeliest = np.sort(expected)[::-1]
    for place, guess in enumerate(found):
        own = expected[guess["index"]]
        if max(abs(guess["probability"] - p) / p for p in (own, likeliest[place])) > 1e-3:
            raise AnswerError(f"the answer's class {place + 1} is not the engine's")


_CHECKS: dict[Kind, Callable[[Question, Answer], None]] = {
    "infer": _check_infer,
    "logits": _check_raw,
    "classes": _check_classes,
}
