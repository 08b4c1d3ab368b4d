"""Images of every kind come through a folder in their right colours; bad ones are told by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_sets import colour_folders
from PIL import Image

from parnet_deploy.data import ArraySamples, Bad, open_samples, scan
from parnet_deploy.errors import ImageError

SIZE = (16, 16)

INKS = (20, 200, 120, 60)
"""Cyan, magenta, yellow and black of a test colour, 255 being full ink."""

INKED = tuple(round((255 - ink) * (255 - INKS[3]) / 255) for ink in INKS[:3])
"""The same as light: each ink takes its part of what the black has left."""


def cmyk_jpeg() -> bytes:
    """As Adobe's programs write it: inverted, with a marker that names Adobe."""
    buffer = io.BytesIO()
    Image.new("CMYK", SIZE, INKS).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def adobe_marker(content: bytes) -> int:
    """Where Adobe's marker starts: FF EE, 14, "Adobe", version, flags, transform."""
    start = content.index(b"\xff\xee\x00\x0eAdobe")
    assert content[start + 15] == 0, "not transformed: the four channels as they are"
    return start


def plain_cmyk_jpeg() -> bytes:
    """Without Adobe's marker. That it is inverted all the same is what every decoder assumes."""
    start = adobe_marker(content := cmyk_jpeg())
    return content[:start] + content[start + 16 :]


def ycck_jpeg() -> bytes:
    """The stored channels are said to be luma, two chromas and black: transform 2."""
    content = bytearray(cmyk_jpeg())
    content[adobe_marker(bytes(content)) + 15] = 2
    return bytes(content)


def ycck_colour() -> tuple[int, ...]:
    """What those channels mean, by the formulas of JFIF."""
    luma, blue, red, black = (255 - ink for ink in INKS)  # as they are stored
    rgb = (
        luma + 1.402 * (red - 128),
        luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128),
        luma + 1.772 * (blue - 128),
    )
    # Stored inks are 255 - rgb, and inverted: rgb itself is the ink.
    return tuple(round((255 - min(max(ink, 0), 255)) * black / 255) for ink in rgb)


def png(colour_type: int, depth: int, pixel: bytes) -> bytes:
    """A PNG of one colour, put together by hand: Pillow writes no 16-bit colour."""
    header = struct.pack(">IIBBBBB", *SIZE, depth, colour_type, 0, 0, 0)
    rows = (b"\0" + pixel * SIZE[0]) * SIZE[1]
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


def deep_grey(big_endian: bool) -> bytes:
    """A 16-bit grey TIFF of 0x8040: 128 of 255."""
    values = np.full(SIZE, 0x8040, ">u2" if big_endian else "<u2")
    image = Image.frombytes("I;16B" if big_endian else "I;16", SIZE, values.tobytes())
    return saved(image, "TIFF")


KINDS = [
    ("cmyk-adobe", cmyk_jpeg, INKED),
    ("cmyk-plain", plain_cmyk_jpeg, INKED),
    ("ycck", ycck_jpeg, ycck_colour()),
    ("cmyk-tiff", lambda: saved(Image.new("CMYK", SIZE, INKS), "TIFF"), INKED),
    ("grey", lambda: saved(Image.new("L", SIZE, 77), "PNG"), (77, 77, 77)),
    ("grey-jpeg", lambda: saved(Image.new("L", SIZE, 77), "JPEG"), (77, 77, 77)),
    ("grey-16", lambda: png(0, 16, b"\x80\x40"), (128, 128, 128)),
    ("grey-16-tiff", lambda: deep_grey(big_endian=False), (128, 128, 128)),
    ("grey-16-big-endian", lambda: deep_grey(big_endian=True), (128, 128, 128)),
    ("grey-16-alpha", lambda: png(4, 16, b"\x80\x40\xff\xff"), (128, 128, 128)),
    ("bilevel", lambda: saved(Image.new("1", SIZE, 1), "PNG"), (255, 255, 255)),
    ("colour-16", lambda: png(2, 16, b"\xff\xff\x80\x40\x1e\x1e"), (255, 128, 30)),
    ("palette", lambda: saved(palette(), "PNG"), (200, 100, 50)),
    ("palette-gif", lambda: saved(palette(), "GIF"), (200, 100, 50)),
    ("palette-clear", lambda: saved(palette(), "PNG", transparency=1), (255, 255, 255)),
    ("alpha", lambda: saved(Image.new("RGBA", SIZE, (200, 100, 50, 255)), "PNG"), (200, 100, 50)),
    ("alpha-half", lambda: saved(Image.new("RGBA", SIZE, (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    ("alpha-none", lambda: saved(Image.new("RGBA", SIZE, (0, 0, 0, 0)), "WEBP"), (255, 255, 255)),
]


@pytest.mark.parametrize(
    ("make", "colour"), [(make, colour) for _, make, colour in KINDS], ids=[k[0] for k in KINDS]
)
def test_images_of_every_kind_have_their_right_colours(
    tmp_path: Path, make: Callable[[], bytes], colour: tuple[int, int, int]
) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class/image.jpg").write_bytes(make())
    image = open_samples(f"imagefolder:{tmp_path}").samples.image(0)
    assert (image.mode, image.size) == ("RGB", SIZE)
    pixels = np.asarray(image).astype(int)
    assert np.abs(pixels - colour).max() <= 2, pixels[4, 4]


def spoil(root: Path) -> dict[str, str]:
    """Put bad files into class folders; returns what is said of each."""
    whole = (root / "red/001.jpg").read_bytes()
    bad = {
        "blue/cut.jpg": (whole[: len(whole) // 2], "damaged or cut short"),
        "blue/empty.png": (b"", "is empty"),
        "green/page.jpg": (b"<html>not found</html>", "not an image of a known format"),
        "red/float.tiff": (
            saved(Image.fromarray(np.full(SIZE, 0.5, np.float32)), "TIFF"),
            "floating-point",
        ),
    }
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    (root / "red/folder.png").mkdir()
    (root / "red/link.png").symlink_to(root)
    return {name: said for name, (_, said) in bad.items()} | {"red/link.png": "is a folder"}


def test_bad_images_are_told_by_name_when_they_are_asked_for(tmp_path: Path) -> None:
    colour_folders(tmp_path)
    said = spoil(tmp_path)
    samples = open_samples(f"imagefolder:{tmp_path}").samples
    names = [samples.name(index) for index in range(len(samples))]
    for name, reason in said.items():
        with pytest.raises(ImageError, match=f"{name}.*{reason}"):
            samples.image(names.index(f"{tmp_path}/{name}"))


def test_scan_finds_the_bad_and_nothing_else(tmp_path: Path) -> None:
    colour_folders(tmp_path)
    said = spoil(tmp_path)
    samples = open_samples(f"imagefolder:{tmp_path}").samples
    done: list[int] = []
    bad = scan(samples, progress=done.append)
    assert done == list(range(1, len(samples) + 1))
    assert {entry.name for entry in bad} == {f"{tmp_path}/{name}" for name in said}
    for entry in bad:
        assert samples.name(entry.index) == entry.name
        assert said[entry.name.removeprefix(f"{tmp_path}/")] in entry.reason
        assert entry.name in entry.reason
    assert [entry.index for entry in bad] == sorted(entry.index for entry in bad)
    assert isinstance(bad[0], Bad)


def test_scan_of_what_is_sound(tmp_path: Path) -> None:
    assert scan(open_samples(f"imagefolder:{colour_folders(tmp_path)}").samples) == ()
    arrays = ArraySamples(np.zeros((3, 3, 2, 2), np.uint8), np.zeros(3, int), "black")
    assert scan(arrays) == ()
