"""Requests that are wrong as HTTP: paths, methods, headers, codings, sizes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator

from serving_faults.fault import Fault, once
from serving_faults.model import NAME, Model, scores_problem
from serving_faults.wire import Answer, chunked, head, request

NOTHING = frozenset({404})
MIB = 1 << 20

BLOCK = 16 * MIB
"""Bytes of nothing that a block of a bomb unfolds to; it takes a thousandth."""


def http_faults() -> tuple[Fault, ...]:
    """All of them."""
    return (*_paths(), *_methods(), *_messages(), *_codings(), *_large(), *_bombs())


def _whole(model: Model) -> bytes:
    return model.good().partition(b"\r\n\r\n")[2]


def _paths() -> Iterator[Fault]:
    def post(path: str) -> Callable[[Model], Iterable[bytes]]:
        return lambda model: once(request("POST", path, _whole(model)))

    def get(path: str) -> Callable[[Model], Iterable[bytes]]:
        return lambda _: once(head("GET", path))

    wrong = frozenset({400, 404})
    cases = {
        "unknown model": (post("/v2/models/nothing/infer"), "POST", NOTHING),
        "unknown version": (post(f"/v2/models/{NAME}/versions/9/infer"), "POST", NOTHING),
        "a version that is none": (post(f"/v2/models/{NAME}/versions/x/infer"), "POST", wrong),
        "a version of 40 digits": (
            post(f"/v2/models/{NAME}/versions/{'9' * 40}/infer"),
            "POST",
            wrong,
        ),
        "..%2f in a model's place": (
            post("/v2/models/..%2f..%2fetc%2fpasswd/infer"),
            "POST",
            NOTHING,
        ),
        "..%2f below a model": (get(f"/v2/models/{NAME}/..%2f..%2f/config"), "GET", NOTHING),
        "../ in a path": (get("/v2/models/../../etc/passwd"), "GET", NOTHING),
        "%00 in a model's name": (get(f"/v2/models/{NAME}%00/config"), "GET", NOTHING),
        "%zz in a path": (get("/v2/models/%zz"), "GET", wrong),
        "a path that is not UTF-8": (get("/v2/models/%ff%fe"), "GET", NOTHING),
        "metadata of an unknown model": (get("/v2/models/nothing"), "GET", NOTHING),
        "a path that is nowhere": (get("/nowhere"), "GET", NOTHING),
        "a model loaded over the network": (
            lambda _: once(request("POST", f"/v2/repository/models/{NAME}/load", b"{}")),
            "POST",
            frozenset({400, 403, 404, 503}),
        ),
    }
    for title, (sends, method, right) in cases.items():
        yield Fault(title=title, group="paths", sends=sends, method=method, right=right)


def _methods() -> Iterator[Fault]:
    wrong = frozenset({405})
    for method, path in (
        ("GET", f"/v2/models/{NAME}/infer"),
        ("PUT", f"/v2/models/{NAME}/infer"),
        ("DELETE", f"/v2/models/{NAME}/infer"),
        ("POST", "/v2/health/live"),
        ("POST", f"/v2/models/{NAME}"),
    ):
        yield Fault(
            title=f"{method} where it is not answered: {path}",
            group="methods",
            sends=lambda _, method=method, path=path: once(request(method, path)),  # type: ignore[misc]
            method=method,
            right=wrong,
        )
    yield Fault(
        title="a method that is none",
        group="methods",
        sends=lambda model: once(request("FETCH", model.path)),
        right=frozenset({400, 405, 501}),
    )


def _messages() -> Iterator[Fault]:
    """What is no request of HTTP/1.1: refused, or hung up on without a word (0)."""
    refused = frozenset({400})
    cases: dict[str, tuple[Callable[[Model], bytes], frozenset[int]]] = {
        "no request at all": (lambda _: b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", refused),
        "no Host": (lambda _: head("GET", "/v2", host="X: y"), refused),
        "two Hosts": (lambda _: head("GET", "/v2", "Host: y"), refused),
        "Content-Length not a number": (
            lambda m: head("POST", m.path, "Content-Length: many"),
            refused,
        ),
        "Content-Length negative": (lambda m: head("POST", m.path, "Content-Length: -5"), refused),
        "Content-Length twice, different": (
            lambda m: head("POST", m.path, "Content-Length: 3", "Content-Length: 4") + b"abc",
            refused,
        ),
        "Content-Length and chunks": (
            lambda m: (
                head("POST", m.path, "Content-Length: 3", "Transfer-Encoding: chunked")
                + b"0\r\n\r\n"
            ),
            refused,
        ),
        "a chunk's size not a number": (
            lambda m: head("POST", m.path, "Transfer-Encoding: chunked") + b"zz\r\nabc\r\n",
            refused,
        ),
        "a chunk's size of 40 digits": (
            lambda m: (
                head("POST", m.path, "Transfer-Encoding: chunked") + b"f" * 40 + b"\r\nabc\r\n"
            ),
            refused,
        ),
        "a header of a megabyte": (
            lambda _: head("GET", "/v2", f"X: {'x' * MIB}"),
            frozenset({400, 413, 431}),
        ),
        "a path of a megabyte": (
            lambda _: head("GET", f"/{'x' * MIB}"),
            frozenset({400, 404, 414, 431}),
        ),
        "100,000 header fields": (
            lambda _: head("GET", "/v2", *(f"X{n}: y" for n in range(100_000))),
            frozenset({400, 413, 431}),
        ),
    }
    for title, (content, right) in cases.items():
        yield Fault(
            title=title,
            group="messages",
            sends=lambda model, content=content: once(content(model)),  # type: ignore[misc]
            right=right | {0},
        )


def _codings() -> Iterator[Fault]:
    def coded(coding: str, code: Callable[[bytes], bytes]) -> Callable[[Model], Iterable[bytes]]:
        def sends(model: Model) -> Iterable[bytes]:
            fields, _, body = model.good().partition(b"\r\n\r\n")
            length = fields.decode().partition("Header-Content-Length: ")[2].split("\r\n")[0]
            return once(
                request(
                    "POST",
                    model.path,
                    code(body),
                    f"Content-Encoding: {coding}",
                    f"Inference-Header-Content-Length: {length}",
                )
            )

        return sends

    def scores(model: Model, answer: Answer) -> str:
        return scores_problem(answer, model.scores)

    unknown, damaged, right = frozenset({415}), frozenset({400}), frozenset({200})
    cases = {
        "unknown, br": ("br", bytes, unknown),
        "unknown, of no name that there is": ("nonsense", bytes, unknown),
        "one over the other": ("gzip, gzip", lambda b: gzip.compress(gzip.compress(b)), unknown),
        "gzip that is none": ("gzip", bytes, damaged),
        "gzip cut short": ("gzip", lambda b: gzip.compress(b)[:-9], damaged),
        "gzip with a wrong checksum": (
            "gzip",
            lambda b: gzip.compress(b)[:-8] + bytes(8),
            damaged,
        ),
        "gzip": ("gzip", gzip.compress, right),
        "deflate": ("deflate", zlib.compress, right),
    }
    for title, (coding, code, statuses) in cases.items():
        yield Fault(
            title=title,
            group="Content-Encoding",
            sends=coded(coding, code),
            right=statuses,
            judge=scores,
        )


def _large() -> Iterator[Fault]:
    """Bodies beyond every limit; they are sent until the server has answered."""
    enough = 256
    parts = [bytes(MIB)] * enough

    def announced(model: Model) -> Iterable[bytes]:
        return once(head("POST", model.path, "Content-Length: 1000000000000"))

    def followed(model: Model) -> Iterable[bytes]:
        yield head("POST", model.path, f"Content-Length: {enough * MIB}")
        yield from parts

    def endless(model: Model) -> Iterable[bytes]:
        yield head("POST", model.path, "Transfer-Encoding: chunked")
        yield from chunked(parts)

    def small(model: Model) -> Iterable[bytes]:
        yield head("POST", model.path, "Transfer-Encoding: chunked")
        yield from [(b"10\r\n" + bytes(16) + b"\r\n") * (MIB // 22)] * enough

    def trailed(model: Model) -> Iterable[bytes]:
        yield head("POST", model.path, "Transfer-Encoding: chunked")
        yield b"2\r\n{}\r\n0\r\n"
        yield from [b"X-Trailer: y\r\n" * (MIB // 14)] * enough

    too_large = frozenset({413})
    cases = {
        "Content-Length of a terabyte, nothing behind it": (announced, too_large),
        f"Content-Length of {enough} MiB, and they come": (followed, too_large),
        f"{enough} MiB in chunks": (endless, too_large),
        # too many chunks, before it has too many bytes
        f"{enough} MiB in chunks of 16 bytes": (small, too_large | {400}),
        f"{enough} MiB of trailers behind the last chunk": (trailed, too_large | {400, 431}),
    }
    for title, (sends, right) in cases.items():
        yield Fault(title=title, group="large bodies", sends=sends, right=right, weighed=True)


def _bombs() -> Iterator[Fault]:
    def bomb(coding: str, start: bytes) -> Callable[[Model], Iterable[bytes]]:
        def sends(model: Model) -> Iterable[bytes]:
            body = start + unfolding(256)
            return once(request("POST", model.path, body, f"Content-Encoding: {coding}"))

        return sends

    gzip_start = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
    for coding, start in (("gzip", gzip_start), ("deflate", b"\x78\x9c")):
        yield Fault(
            title=f"{coding} of 4 MiB that unfolds to 4 GiB",
            group="bombs",
            sends=bomb(coding, start),
            right=frozenset({413}),
            weighed=True,
        )
    yield Fault(
        title="15 MiB of numbers in JSON, for an image of fewer",
        group="bombs",
        sends=lambda model: once(request("POST", model.path, _numbers(model, 15 * MIB))),
        right=frozenset({400}),
        weighed=True,
    )


def _numbers(model: Model, size: int) -> bytes:
    """JSON that is a list of numbers of so many bytes; as values they would take 16 times that."""
    start, end = json.dumps({"inputs": [model.numbers([0])]}).encode().split(b"[0]")
    return start + b"[" + b"0," * (size // 2) + b"0]" + end


def unfolding(blocks: int) -> bytes:
    """Raw deflate data (RFC 1951) of so many times `BLOCK` zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * blocks + packer.flush()
