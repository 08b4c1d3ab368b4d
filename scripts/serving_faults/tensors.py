"""Inference requests whose JSON or tensors are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from serving_faults.fault import Fault, Judge, once
from serving_faults.model import Model, scores_problem
from serving_faults.wire import Answer, request, tensors

REFUSED = frozenset({400})
TAKEN = frozenset({200})

Content = Callable[[Model], bytes]


def tensor_faults() -> tuple[Fault, ...]:
    """All of them."""
    return (*_sizes(), *_lengths(), *_json(), *_shapes(), *_names(), *_finite())


def _fault(
    group: str,
    title: str,
    content: Content,
    right: frozenset[int] = REFUSED,
    judge: Judge | None = None,
) -> Fault:
    return Fault(
        title=title,
        group=group,
        sends=lambda model: once(content(model)),
        right=right,
        judge=judge,
    )


def _binary(model: Model, tail: bytes, **changes: Any) -> bytes:
    return tensors(model.path, {"inputs": [model.tensor(**changes)]}, tail)


def _inputs(model: Model, *inputs: dict[str, Any], **more: Any) -> bytes:
    return request("POST", model.path, json.dumps({"inputs": inputs, **more}).encode())


def _text(text: bytes) -> Content:
    return lambda model: request("POST", model.path, text)


# --- sizes --------------------------------------------------------------------------------------


def _sizes() -> Iterator[Fault]:
    def said(size: object) -> Content:
        return lambda model: _binary(
            model, model.image.tobytes(), parameters={"binary_data_size": size}
        )

    cases: dict[str, Content] = {
        "tensor cut short, its size true": lambda m: _binary(
            m, m.image.tobytes()[:-4], parameters={"binary_data_size": m.image.nbytes - 4}
        ),
        "tensor cut short, its size a lie": lambda m: _binary(m, m.image.tobytes()[:-4]),
        "tensor oversized, its size true": lambda m: _binary(
            m, m.image.tobytes() + bytes(4), parameters={"binary_data_size": m.image.nbytes + 4}
        ),
        "bytes behind the last tensor": lambda m: _binary(m, m.image.tobytes() + bytes(64)),
        "no bytes at all behind the JSON": lambda m: _binary(m, b""),
        "half a number": lambda m: _binary(
            m, m.image.tobytes()[:-1], parameters={"binary_data_size": m.image.nbytes - 1}
        ),
        "binary_data_size 0": said(0),
        "binary_data_size -1": said(-1),
        "binary_data_size 2^63": said(2**63),
        "binary_data_size 2^64 + the true one": lambda m: said(2**64 + m.image.nbytes)(m),
        "binary_data_size a text": said("all"),
        "data and binary_data_size": lambda m: _binary(
            m, m.image.tobytes(), data=m.image.ravel().tolist()
        ),
        "too few numbers in the JSON": lambda m: _inputs(m, m.numbers([0.0, 1.0])),
        "too many numbers in the JSON": lambda m: _inputs(m, m.numbers([0.0] * (m.image.size + 1))),
        "image file shorter than it says": lambda m: _binary(
            m,
            (1000).to_bytes(4, "little") + b"abc",
            datatype="BYTES",
            shape=[1],
            parameters={"binary_data_size": 7},
        ),
    }
    for title, content in cases.items():
        yield _fault("tensor sizes", title, content)


def _lengths() -> Iterator[Fault]:
    def said(length: object) -> Content:
        return lambda model: tensors(
            model.path, {"inputs": [model.tensor()]}, model.image.tobytes(), length=length
        )

    name = b"Inference-Header-Content-Length: "
    cases: dict[str, Content] = {
        "said twice": lambda model: model.good().replace(name, name + b"20\r\n" + name),
        "negative": said(-1),
        "beyond the body": said(10**9),
        "of 30 digits": said("9" * 30),
        "not a number": said("many"),
        "hexadecimal": said("0x10"),
        "a fraction": said("12.5"),
        "empty": said(""),
        "0, with a tensor": said(0),
        "in the middle of the JSON": said(20),
    }
    for title, content in cases.items():
        yield _fault("Inference-Header-Content-Length", title, content)


# --- JSON ---------------------------------------------------------------------------------------


def _json() -> Iterator[Fault]:
    deep = 200_000
    tensor = '{"inputs":[{"name":"images","datatype":"FP32","shape":[1],"data":'
    cases: dict[str, Content] = {
        "empty": _text(b""),
        "garbage": _text(b"\x00\x01garbage{{{"),
        "cut short": lambda m: request("POST", m.path, b'{"inputs": [{"name": "im'),
        "not UTF-8": _text(b'{"inputs": "\xff\xfe"}'),
        "null": _text(b"null"),
        "a list": _text(b"[]"),
        "a number": _text(b"17"),
        "an empty object": _text(b"{}"),
        "inputs a number": _text(b'{"inputs": 1}'),
        "inputs an object": _text(b'{"inputs": {"name": "images"}}'),
        "inputs empty": _text(b'{"inputs": []}'),
        "an input a text": _text(b'{"inputs": ["images"]}'),
        "an input null": _text(b'{"inputs": [null]}'),
        "outputs a text": lambda m: _inputs(m, m.numbers(), outputs="logits"),
        "an output a number": lambda m: _inputs(m, m.numbers(), outputs=[7]),
        "parameters a list": lambda m: _inputs(m, m.numbers(), parameters=[1]),
        "a name a number": lambda m: _inputs(m, m.numbers(name=5)),
        "no name": lambda m: _inputs(m, {"datatype": "FP32", "shape": m.shape(), "data": []}),
        "id a number": lambda m: _inputs(m, m.numbers(), id=5),
        "shape a text": lambda m: _inputs(m, m.numbers(shape="1,3")),
        "data texts": lambda m: _inputs(m, m.numbers(["a"] * m.image.size)),
        "data an object": lambda m: _inputs(m, m.numbers({"a": 1})),
        "data null": lambda m: _inputs(m, m.numbers() | {"data": None}),
        "two objects": lambda m: request("POST", m.path, b"{}{}"),
        f"lists nested {deep:,} deep": _text(b"[" * deep + b"]" * deep),
        f"data nested {deep:,} deep": _text(
            (tensor + "[" * deep + "1" + "]" * deep + "}]}").encode()
        ),
        f"objects nested {deep:,} deep": _text(b'{"a":' * deep + b"1" + b"}" * deep),
        f"lists opened {deep:,} times": _text(b'{"inputs":' + b"[" * deep),
        "a number of 100,000 digits": _text((tensor + "[" + "1" * 100_000 + "]}]}").encode()),
    }
    for title, content in cases.items():
        yield _fault("JSON", title, content)


# --- datatypes and shapes -----------------------------------------------------------------------


def _shapes() -> Iterator[Fault]:
    def typed(datatype: object) -> Content:
        return lambda model: _binary(model, model.image.tobytes(), datatype=datatype)

    def shaped(shape: Callable[[Model], Sequence[Any]]) -> Content:
        return lambda model: _binary(model, model.image.tobytes(), shape=list(shape(model)))

    def many(model: Model) -> bytes:
        images = np.repeat(model.image, model.most + 1, axis=0)
        return model.good(images)

    datatypes: dict[str, Content] = {
        "wrong datatype, FP64": typed("FP64"),
        "wrong datatype of the same size, INT32": typed("INT32"),
        "unknown datatype": typed("FLOAT"),
        "datatype empty": typed(""),
        "datatype a number": typed(32),
        "numbers as BYTES": typed("BYTES"),
    }
    for title, content in datatypes.items():
        yield _fault("datatypes", title, content)
    shapes: dict[str, Content] = {
        "NHWC": shaped(lambda m: [1, *m.size, 3]),
        "without the axis of images": shaped(lambda m: [3, *m.size]),
        "a further axis": shaped(lambda m: [1, 1, 3, *m.size]),
        "no axes": shaped(lambda _: []),
        "negative batch": shaped(lambda m: [-1, 3, *m.size]),
        "two negative sizes": shaped(lambda m: [-1, -3, *m.size]),
        "batch 0": shaped(lambda m: [0, 3, *m.size]),
        "a size 0": shaped(lambda m: [1, 3, 0, m.size[1]]),
        "product beyond 2^64": shaped(lambda m: [2**32, 3, 2**32, m.size[1]]),
        "product 2^64 + the true one": shaped(lambda m: [1, 3, m.size[0], 2**62]),
        "a size beyond 2^63": shaped(lambda m: [1, 3, 2**63, m.size[1]]),
        "a size beyond 2^64": shaped(lambda m: [10**30, 3, *m.size]),
        "a size a fraction": shaped(lambda m: [1, 3, m.size[0], 31.5]),
        "a size a text": shaped(lambda m: [1, 3, "32", m.size[1]]),
        "a size null": shaped(lambda m: [1, 3, None, m.size[1]]),
        "100,000 axes": shaped(lambda _: [1] * 100_000),
        "batch beyond the maximum": many,
        "batch of 2, bytes of 1": shaped(lambda m: [2, 3, *m.size]),
    }
    for title, content in shapes.items():
        yield _fault("shapes", title, content)


# --- names --------------------------------------------------------------------------------------


def _names() -> Iterator[Fault]:
    def outputs(*wanted: dict[str, Any]) -> Content:
        return lambda model: _inputs(model, model.numbers(), outputs=list(wanted))

    cases: dict[str, Content] = {
        "input of an unknown name": lambda m: _inputs(m, m.numbers(name="pictures")),
        "input missing": lambda m: _inputs(m, outputs=[{"name": "logits"}]),
        "input extra": lambda m: _inputs(m, m.numbers(), m.numbers(name="more")),
        "input twice": lambda m: _inputs(m, m.numbers(), m.numbers()),
        "input twice, as bytes": lambda m: tensors(
            m.path, {"inputs": [m.tensor(), m.tensor()]}, m.image.tobytes() * 2
        ),
        "output unknown": outputs({"name": "probabilities"}),
        "output extra": outputs({"name": "logits"}, {"name": "more"}),
        "output twice": outputs({"name": "logits"}, {"name": "logits"}),
        "classification -1": outputs({"name": "logits", "parameters": {"classification": -1}}),
    }
    for title, content in cases.items():
        yield _fault("inputs and outputs", title, content)
    shared: dict[str, Content] = {
        "output of shared memory": outputs(
            {"name": "logits", "parameters": {"shared_memory_region": "x"}}
        ),
        "input of shared memory": lambda m: _inputs(
            m,
            m.tensor(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 64}),
        ),
    }
    for title, content in shared.items():
        yield _fault("inputs and outputs", title, content, frozenset({400, 404}))


# --- numbers that are not finite ----------------------------------------------------------------


def _finite() -> Iterator[Fault]:
    def holding(value: float) -> Content:
        def content(model: Model) -> bytes:
            image = model.image.copy()
            image[0, 1, 2, 3] = value
            return model.good(image)

        return content

    def literal(text: str) -> Content:
        def content(model: Model) -> bytes:
            numbers = ",".join(["0.5"] * (model.image.size - 1) + [text])
            shape = json.dumps(model.shape())
            return request(
                "POST",
                model.path,
                f'{{"inputs":[{{"name":"images","datatype":"FP32","shape":{shape},'
                f'"data":[{numbers}]}}]}}'.encode(),
            )

        return content

    def largest(model: Model) -> bytes:
        return model.good(np.full_like(model.image, np.finfo(np.float32).max))

    cases: dict[str, Content] = {
        "NaN among the bytes": holding(float("nan")),
        "infinity among the bytes": holding(float("inf")),
        "NaN in the JSON": literal("NaN"),
        "Infinity in the JSON": literal("Infinity"),
        "1e39 in the JSON, which FP32 rounds to infinity": literal("1e39"),
        "1e999 in the JSON": literal("1e999"),
    }
    for title, content in cases.items():
        yield _fault("not finite", title, content)
    # Whatever a network makes of them, and be it NaN: the answer is legal JSON, or an error.
    yield _fault("not finite", "largest numbers of FP32", largest, frozenset({200, 500}), _legal)
    yield _fault(
        "not finite", "the smallest number above 0", literal("1e-45"), TAKEN, _legal_numbers
    )


def _legal(_: Model, answer: Answer) -> str:
    length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
    try:
        json.loads(answer.body[:length], parse_constant=_not_json)
    except ValueError as exc:
        return f"the answer is no legal JSON: {exc}"
    numbers = np.frombuffer(answer.body[length:], np.float32)
    return "" if np.isfinite(numbers).all() else "the answer's numbers are not finite"


def _legal_numbers(model: Model, answer: Answer) -> str:
    image = np.full_like(model.image, 0.5)
    image.ravel()[-1] = 1e-45
    return _legal(model, answer) or scores_problem(answer, model.run(image))


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
