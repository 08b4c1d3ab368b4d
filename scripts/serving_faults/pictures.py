"""Images as files: bombs, damaged ones, and those that few programs get right."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from serving_faults.fault import Fault, once
from serving_faults.http import BLOCK, unfolding
from serving_faults.model import Model, probabilities_problem, scores_problem
from serving_faults.wire import Answer, request, tensors

OURS = "it takes tensors only"
REFUSED = frozenset({400})
TAKEN = frozenset({200})


def picture_faults() -> tuple[Fault, ...]:
    """All of them: as the body of /classify, and as an element of type BYTES."""
    found: list[Fault] = []
    for title, data in _refused().items():
        found += _both(title, data, REFUSED)
    for title, data in _sound().items():
        found += _both(title, data, TAKEN)
    return (*found, *_odd())


def _both(title: str, data: bytes, right: frozenset[int]) -> Iterator[Fault]:
    def classified(model: Model, answer: Answer) -> str:
        return probabilities_problem(answer, model.scores_of(data), model.bundle.labels)

    def inferred(model: Model, answer: Answer) -> str:
        return scores_problem(answer, model.scores_of(data))

    for where, sends, judge in (
        ("/classify", lambda _: once(request("POST", "/classify", data)), classified),
        ("BYTES", lambda model: once(_as_bytes(model, data)), inferred),
    ):
        yield Fault(
            title=f"{title} ({where})",
            group="images",
            sends=sends,
            right=right,
            judge=judge,
            alone=OURS,
            weighed=",000 x" in title or ",500 x" in title or ",535 x" in title,
        )


def _as_bytes(model: Model, *files: bytes) -> bytes:
    data = b"".join(len(each).to_bytes(4, "little") + each for each in files)
    tensor = model.tensor(
        datatype="BYTES", shape=[len(files)], parameters={"binary_data_size": len(data)}
    )
    return tensors(model.path, {"inputs": [tensor]}, data)


def photograph(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A smooth image."""
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _refused() -> dict[str, bytes]:
    jpeg, png = saved(photograph(), "JPEG"), saved(photograph(), "PNG")
    return {
        "PNG of 50,000 x 50,000 pixels": png_bomb(50_000),
        "JPEG of 65,500 x 65,500 pixels": _resized(jpeg, 65_500),
        "GIF of 65,535 x 65,535 pixels": b"GIF89a\xff\xff\xff\xff" + bytes(32),
        "text": b"this is no image",
        "nothing but zeros": bytes(1000),
        "JPEG cut short": jpeg[: len(jpeg) // 2],
        "PNG cut short": png[: len(png) // 2],
        "PNG with a wrong checksum": png[:40] + bytes([png[40] ^ 255]) + png[41:],
        "a JPEG's first two bytes": jpeg[:2],
        "PNG of 0 x 0 pixels": _png(0, 0, zlib.compress(b"")),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
    }


def _sound() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.linspace(0, 65535, 60 * 40, dtype=np.uint16).reshape(40, 60)
    return {
        "JPEG": saved(photograph(), "JPEG"),
        "CMYK JPEG": saved(photograph("CMYK"), "JPEG"),
        "JPEG turned by EXIF": saved(photograph(), "JPEG", exif=exif.tobytes()),
        "JPEG with damaged EXIF": saved(photograph(), "JPEG", exif=b"Exif\0\0damaged"),
        "PNG of 16 bits": saved(Image.fromarray(deep), "PNG"),
        "PNG of 1 bit": saved(photograph("1"), "PNG"),
        "PNG with a palette": saved(photograph("P"), "PNG"),
        "PNG with transparency": saved(photograph("RGBA"), "PNG"),
        "grey JPEG": saved(photograph("L"), "JPEG"),
        "1 x 1 pixel": saved(photograph(size=(1, 1)), "PNG"),
        "1 x 500 pixels": saved(photograph(size=(1, 500)), "PNG"),
    }


def _odd() -> Iterator[Fault]:
    jpeg = saved(photograph(), "JPEG")

    def in_json(text: str) -> Callable[[Model], Iterable[bytes]]:
        def sends(model: Model) -> Iterable[bytes]:
            tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [text]}
            return once(request("POST", model.path, json.dumps({"inputs": [tensor]}).encode()))

        return sends

    def inferred(model: Model, answer: Answer) -> str:
        return scores_problem(answer, model.scores_of(jpeg))

    def empty(_: Model) -> Iterable[bytes]:
        return once(request("POST", "/classify"))

    def too_many(model: Model) -> Iterable[bytes]:
        return once(_as_bytes(model, *[jpeg] * (model.most + 1)))

    text = base64.b64encode(jpeg).decode()
    cases = {
        "JPEG as base64 in JSON": (in_json(text), TAKEN),
        "base64 that is none": (in_json("!!!!"), REFUSED),
        "base64 cut short": (in_json(text[:-3]), REFUSED),
        "an empty body (/classify)": (empty, REFUSED),
        "more images than a batch holds": (too_many, REFUSED),
        "top=0": (lambda _: once(request("POST", "/classify?top=0", jpeg)), REFUSED),
        "top=many": (lambda _: once(request("POST", "/classify?top=many", jpeg)), REFUSED),
        "top=1000000000": (
            lambda _: once(request("POST", "/classify?top=1000000000", jpeg)),
            REFUSED,
        ),
    }
    for title, (sends, right) in cases.items():
        yield Fault(
            title=title, group="images", sends=sends, right=right, judge=inferred, alone=OURS
        )


def png_bomb(side: int) -> bytes:
    """A PNG of a bit a pixel: 300 kB of file and, decoded, side x side bytes."""
    rows = side * (side // 8 + 1)
    return _png(side, side, b"\x78\x9c" + unfolding(rows // BLOCK + 1) + bytes(4))


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        summed = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", summed)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _resized(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose frame header says that it is larger (ITU-T T.81, B.2.2)."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", side, side) + jpeg[start + 4 :]
