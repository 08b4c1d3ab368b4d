"""Conversations that nobody would have thought of, and what a server may answer to them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from PIL import Image
from serving_faults.model import NAME, Model, scores_problem
from serving_faults.wire import Answer, Connection, WireError, head, request

PATIENCE = 20.0
"""Seconds within which every connection is answered or ended."""

QUIET = 0.05
"""Seconds after an answer in which another one is waited for."""

NOT_FINITE = "not finite"
"""Words of the only 500 there may be: what the network made of an unlikely image."""

TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\xff", b"%", b"/", b"..%2f", b"\r\n\r\n",
    b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Host: y\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\n",
    b"HTTP/1.0", b"HTTP/2.0", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"ffffffffffffffff\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"[" * 5000, b'{"inputs":', b"null", b"-1", b"1e999",
    b"\xed\xa0\x80", b'"' * 50, b"9" * 40, b"x" * 5000,
)  # fmt: skip

METHODS = (
    "GET",
    "GET",
    "POST",
    "POST",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "BREW",
    "get",
)
PATHS = (
    f"/v2/models/{NAME}/infer", f"/v2/models/{NAME}/versions/1/infer", "/classify",
    "/classify?top=2&trace=1", "/v2", "/v2/health/live", "/v2/health/ready", "/metrics", "/",
    f"/v2/models/{NAME}", f"/v2/models/{NAME}/config", f"/v2/models/{NAME}/stats",
    "/v2/models/stats", "/v2/models/%2e%2e/infer", "*", "//", "/?", "/#x", "http://x/v2",
    "http://[::1", "x:1", "/%", "/%00", "/classify?top=%00", "/classify?" + "a=b&" * 50,
)  # fmt: skip
FIELDS = {
    "Content-Length": ("0", "5", "-1", "9" * 30, "0x10", "+5", "5, 5", "", "1e3"),
    "Transfer-Encoding": ("chunked", "identity", "gzip, chunked", "chunked, chunked", "Chunked"),
    "Content-Encoding": ("gzip", "deflate", "br", "identity", "gzip, gzip", ""),
    "Content-Type": ("application/json", "multipart/form-data; boundary=x", "image/png", "\xff"),
    "Inference-Header-Content-Length": ("0", "1", "100", "-1", "x", "9" * 20, "\xb2"),
    "Connection": ("close", "keep-alive", "upgrade", "close, keep-alive", ""),
    "Upgrade": ("websocket", "h2c"),
    "Expect": ("100-continue", "nothing"),
    "Host": ("y", "", "\xff"),
    "X-Request-Id": ("a" * 128, "a" * 129, "\xff", "a b", "{}"),
    "Accept": ("*/*", "application/openmetrics-text; version=1.0.0", "text/html;q=x", ""),
    "Accept-Encoding": ("gzip", "gzip;q=0", "*"),
    "Authorization": ("Bearer x", "Basic x", ""),
    "Range": ("bytes=0-1", "bytes=-1"),
    "Trailer": ("X",),
    "X-Long": ("x" * 40_000,),
}
WORDS = (
    "inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data", "images",
    "logits", "FP32", "BYTES", "binary_data_size", "binary_data", "classification",
    "shared_memory_region",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """What a client sends on one connection.

    Attributes:
        parts: bytes, as they are written.
        begins_well: whether a good request stands in front.
        leaves: whether the client hangs up as soon as it has sent everything.
    """

    parts: tuple[bytes, ...]
    begins_well: bool
    leaves: bool


# --- strategies ---------------------------------------------------------------------------------


def conversations(model: Model) -> st.SearchStrategy[Conversation]:
    """Requests that are good, mutated, or put together at random, one behind another."""
    one = st.one_of(
        mutated(model), composed(), composed(), warped(model), warped(model), spoiled(model)
    )
    return st.builds(
        _conversation,
        st.just(model.good()),
        st.booleans(),
        st.lists(one, min_size=1, max_size=4).map(b"".join),
        st.lists(st.floats(0, 1), max_size=4),
        st.sampled_from((False, False, False, True)),
    )


def _conversation(
    good: bytes, begins_well: bool, data: bytes, cuts: list[float], leaves: bool
) -> Conversation:
    whole = good * begins_well + data
    ends = [*sorted(int(cut * len(whole)) for cut in cuts), len(whole)]
    starts = [0, *ends[:-1]]
    parts = tuple(whole[start:end] for start, end in zip(starts, ends, strict=True) if start < end)
    return Conversation(parts=parts, begins_well=begins_well, leaves=leaves)


def good_ones(model: Model) -> list[bytes]:
    """Requests that nothing is wrong with."""
    stream = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(stream, "PNG")
    numbers = {"inputs": [model.numbers([0.25] * model.image.size)]}
    return [
        model.good(),
        request("POST", model.path, json.dumps(numbers).encode()),
        request("POST", "/classify?top=2", stream.getvalue()),
        *(head("GET", path) for path in PATHS[4:13]),
    ]


FRAMINGS = st.sampled_from(("length",) * 6 + ("chunks",) * 6 + ("chunks cut", "both", "none"))
SIZES = st.lists(st.integers(1, 2000), max_size=4)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(("put", "cut", "over", "twice", "flip")),
        st.floats(0, 1),
        st.integers(1, 40),
        st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=8)),
        st.booleans(),
    ),
    max_size=3,
)


def mutated(model: Model) -> st.SearchStrategy[bytes]:
    """A good request with some changes anywhere in it, or none."""
    return st.builds(_mutate, st.sampled_from(good_ones(model)), CHANGES)


def spoiled(model: Model) -> st.SearchStrategy[bytes]:
    """A good request whose body was changed, and is framed as if nothing was wrong with it."""
    return st.builds(_spoil, st.sampled_from(good_ones(model)[:3]), CHANGES, FRAMINGS, SIZES)


def _spoil(
    good: bytes,
    changes: Sequence[tuple[str, float, int, bytes, bool]],
    framing: str,
    sizes: list[int],
) -> bytes:
    start, _, body = good.partition(b"\r\n\r\n")
    line, *fields = start.decode().split("\r\n")
    method, path, _ = line.split()
    kept = [each for each in fields if not each.startswith(("Content-Length", "Host"))]
    return _compose(method, path, kept, _mutate(body, changes), framing, sizes)


MEMBERS: tuple[tuple[str | int, ...], ...] = (
    ("inputs",), ("outputs",), ("id",), ("parameters",), ("inputs", 0), ("inputs", 0, "name"),
    ("inputs", 0, "shape"), ("inputs", 0, "shape", 0), ("inputs", 0, "shape", 2),
    ("inputs", 0, "datatype"), ("inputs", 0, "parameters"), ("inputs", 0, "data"),
    ("inputs", 0, "parameters", "binary_data_size"), ("outputs", 0), ("outputs", 0, "name"),
    ("outputs", 0, "parameters"), ("outputs", 0, "parameters", "binary_data"),
    ("outputs", 0, "parameters", "classification"),
)  # fmt: skip


def warped(model: Model) -> st.SearchStrategy[bytes]:
    """An inference request in which some members are something else."""
    change = st.tuples(st.sampled_from(MEMBERS), trees())
    return st.builds(
        _warp,
        st.just(model),
        st.lists(change, max_size=3),
        st.booleans(),
        st.sampled_from((None, None, None, 0, 1, -1, 10**6, 10**19)),
        FRAMINGS,
        SIZES,
    )


def _warp(
    model: Model,
    changes: Sequence[tuple[tuple[str | int, ...], Any]],
    binary: bool,
    length: int | None,
    framing: str,
    sizes: list[int],
) -> bytes:
    tensor = model.tensor() if binary else model.numbers([0.25] * model.image.size)
    output = {"name": "logits", "parameters": {"binary_data": True}}
    message: Any = {"inputs": [tensor], "outputs": [output], "id": "x", "parameters": {}}
    for (*way, last), value in changes:
        place = message
        # An earlier change may have put something else in the way.
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for step in way:
                place = place[step]
            place[last] = value
    text = json.dumps(message).encode("utf-8", "surrogatepass")
    body = text + model.image.tobytes() * binary
    said = f"Inference-Header-Content-Length: {len(text) if length is None else length}"
    fields = [said] if binary or length is not None else []
    return _compose("POST", model.path, fields, body, framing, sizes)


def _mutate(data: bytes, changes: Sequence[tuple[str, float, int, bytes, bool]]) -> bytes:
    for kind, place, length, token, in_head in changes:
        # Most of a request is its tensor, where a change does the least.
        size = min(len(data), 400) if in_head else len(data)
        at = int(place * size)
        end = at + length
        if kind == "put":
            data = data[:at] + token + data[at:]
        elif kind == "cut":
            data = data[:at] + data[end:]
        elif kind == "over":
            data = data[:at] + token + data[at + len(token) :]
        elif kind == "twice":
            data = data[:end] + data[at:]
        else:
            data = data[:at] + bytes(byte ^ 0x20 for byte in data[at:end]) + data[end:]
    return data


def composed() -> st.SearchStrategy[bytes]:
    """A request of parts that do not fit together."""
    fields = st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.sampled_from(FIELDS[name]).map(lambda value: f"{name}: {value}")
    )
    odd = st.binary(max_size=12).map(lambda data: data.decode("latin-1"))
    method = st.one_of(*[st.sampled_from(METHODS)] * 7, odd)
    path = st.one_of(*[st.sampled_from(PATHS)] * 7, odd.map(lambda text: f"/{text}"))
    return st.builds(
        _compose,
        method,
        path,
        st.lists(st.one_of(*[fields] * 7, odd), max_size=3),
        st.one_of(st.just(b""), st.binary(max_size=300), documents()),
        FRAMINGS,
        SIZES,
    )


def _compose(
    method: str, path: str, fields: list[str], body: bytes, framing: str, sizes: list[int]
) -> bytes:
    if method.strip().upper() == "HEAD":
        method = "GET"  # its answers have no body, and one could not tell where they end
    if framing in ("length", "both"):
        fields = [*fields, f"Content-Length: {len(body)}"]
    if framing not in ("chunks", "chunks cut", "both"):
        return head(method, path, *fields) + body
    framed = b""
    for size in sizes:
        part, body = body[:size], body[size:]
        framed += b"%x;e=1\r\n%b\r\n" % (len(part), part) if part else b""
    framed += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\nX: y\r\n\r\n"
    if framing == "chunks cut":
        framed = framed[: len(framed) // 2]
    return head(method, path, *fields, "Transfer-Encoding: chunked") + framed


def trees() -> st.SearchStrategy[Any]:
    """Values of JSON, with words of the protocol in them."""
    word = st.one_of(st.sampled_from(WORDS), st.text(max_size=5))
    number = st.sampled_from((0, 1, 2, 3, -1, 0.5, 2**31, 2**63, 2**64, 10**30, 1e300))
    leaf: st.SearchStrategy[Any] = st.one_of(st.none(), st.booleans(), number, word)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(word, inner, max_size=4)
        ),
        max_leaves=12,
    )


def documents() -> st.SearchStrategy[bytes]:
    """JSON that looks like a request from afar."""
    return trees().map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))


# --- what is looked at --------------------------------------------------------------------------


def hold(port: int, model: Model, talk: Sequence[Conversation]) -> str:
    """Hold conversations at the same time; what is wrong with an answer, or nothing."""
    with contextlib.ExitStack() as stack:
        held = []
        for each in talk:
            connection = stack.enter_context(Connection(port))
            connection.send(each.parts)
            if each.leaves:
                connection.close()
            else:
                held.append((each, connection))
        for each, connection in held:
            if problem := _listen(connection, model, each):
                return problem
    return ""


def _listen(connection: Connection, model: Model, conversation: Conversation) -> str:
    answers: list[Answer] = []
    try:
        while not answers or connection.has_more(QUIET):
            answer = connection.answer(seconds=PATIENCE)
            if answer is None:
                break
            answers.append(answer)
    except WireError as exc:
        return f"{exc}, after {len(answers)} answers"
    if conversation.begins_well:
        if not answers or answers[0].status != 200:
            return "a good request in front is not answered"
        if problem := scores_problem(answers[0], model.scores):
            return f"a good request in front: {problem}"
    return next(filter(None, map(answer_problem, answers)), "")


def answer_problem(answer: Answer) -> str:
    """What is wrong with an answer to whatever it was."""
    if answer.status < 400:
        return "" if answer.status == 200 else f"status {answer.status}"
    if answer.headers.get("content-type") != "application/json" or answer.error is None:
        return f"the body of {answer.status} is not an error in JSON"
    if answer.status >= 500 and answer.status not in (503, 504):
        if answer.status == 500 and NOT_FINITE in answer.error:
            return ""
        return f"status {answer.status}: {answer.error}"
    return ""
