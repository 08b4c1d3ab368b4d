"""Decoding any image file as upright RGB, and preparing it as torchvision does."""

from __future__ import annotations

import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from parnet_deploy import images
from parnet_deploy.errors import ImageError
from parnet_deploy.images import decode, decode_bytes, find_images, load_images, preprocess
from parnet_deploy.spec import Preprocessing

RED, WHITE = (255, 0, 0), (255, 255, 255)
PLAIN = Preprocessing(size=(4, 4), crop_ratio=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


# --- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "gif", "webp"])
def test_decode_every_lossless_format(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGB", (5, 3), RED)
    options = {"lossless": True} if suffix == "webp" else {}
    decoded = decode(save(image, tmp_path / f"image.{suffix}", **options))
    assert decoded.mode == "RGB"
    assert decoded.size == (5, 3)
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


def test_decode_of_bytes_is_that_of_the_file(tmp_path: Path) -> None:
    path = save(noise(9, 7), tmp_path / "a.jpg")
    assert np.array_equal(np.asarray(decode_bytes(path.read_bytes())), np.asarray(decode(path)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty"), (b"GIF89a", "damaged or cut short|not an image"), (b"no", "known format")],
)
def test_bytes_that_are_no_image_are_called_by_their_name(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"^image 2 .*({reason})"):
        decode_bytes(data, name="image 2")


def test_bytes_of_too_many_pixels_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("L", (100, 101)).save(buffer, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="100x101 pixels, and at most 10000"):
        decode_bytes(buffer.getvalue(), max_pixels=100 * 100)


def test_decode_goes_by_content_not_by_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), RED).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg").getpixel((0, 0)) == RED


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """The stored image is the upright one, turned; what is decoded is upright again."""
    upright = noise(3, 2)
    turn = {
        1: lambda im: im,
        2: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda im: im.transpose(Image.Transpose.ROTATE_180),
        4: lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda im: im.transpose(Image.Transpose.TRANSPOSE),
        6: lambda im: im.transpose(Image.Transpose.ROTATE_90),  # shown turned clockwise
        7: lambda im: im.transpose(Image.Transpose.TRANSVERSE),
        8: lambda im: im.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(turn(upright), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(decode(path)), np.asarray(upright))


def test_decode_reads_an_image_whose_exif_is_damaged(tmp_path: Path) -> None:
    junk = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))
    path = save(Image.new("RGB", (8, 8), RED), tmp_path / "a.jpg", exif=junk)
    assert decode(path).size == (8, 8)


def test_decode_grey_palette_and_bilevel(tmp_path: Path) -> None:
    grey = decode(save(Image.new("L", (2, 2), 100), tmp_path / "grey.png"))
    assert grey.getpixel((0, 0)) == (100, 100, 100)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, *RED])
    assert decode(save(palette, tmp_path / "palette.png")).getpixel((1, 1)) == RED
    bilevel = decode(save(Image.new("1", (2, 2), 1), tmp_path / "bilevel.png"))
    assert bilevel.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_shows_white_behind_alpha(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    decoded = decode(save(image.convert(mode), tmp_path / "alpha.png"))
    assert decoded.getpixel((0, 0)) == WHITE
    assert decoded.getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_decode_shows_white_behind_a_transparent_palette(
    tmp_path: Path, transparency: int | bytes
) -> None:
    """Pillow warns about bytes; under this suite a warning would be an error."""
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([*RED, 0, 255, 0])
    path = save(palette, tmp_path / "a.png", transparency=transparency)
    assert decode(path).getpixel((0, 0)) == WHITE


def test_decode_cmyk(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    red, green, blue = decode(path).getpixel((4, 4))
    assert red > 250
    assert green < 5
    assert blue < 5


def test_decode_scales_16_bit_instead_of_clipping(tmp_path: Path) -> None:
    values = np.array([[0, 128, 32768, 65535]], np.uint16)
    path = save(Image.fromarray(values), tmp_path / "deep.png")
    assert np.asarray(decode(path))[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((2, 2), 0.5, np.float32), "floating-point"),
        (np.full((2, 2), 70_000, np.int32), "more than 16 bits"),
    ],
)
def test_decode_refuses_pixels_without_a_known_white(
    tmp_path: Path, values: np.ndarray, said: str
) -> None:
    path = save(Image.fromarray(values), tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=f"a.tiff.*{said}"):
        decode(path)


def test_decode_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(path).getpixel((0, 0)) == RED


# --- files that are no images -------------------------------------------------------------------


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "JPEG")
    return buffer.getvalue()


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, I am text\n", "not an image of a known format"),
        (jpeg_bytes()[:700], "damaged or cut short"),
        (png_bytes()[:700], "damaged or cut short"),
        (png_bytes()[:20], "not an image of a known format|damaged or cut short"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
    ],
    ids=["empty", "text", "cut-jpeg", "cut-png", "cut-header", "postscript"],
)
def test_decode_says_what_is_wrong_with_a_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=said) as caught:
        decode(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.data())
def test_decode_of_damaged_bytes_gives_an_image_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from([jpeg_bytes(), png_bytes()])))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "image"
    path.write_bytes(content)
    try:
        decoded = decode(path)
    except ImageError as exc:
        said = str(exc)
    else:
        said = f"{path} gave {decoded.mode}"
    assert said.startswith(str(path))
    assert "gave" not in said or said.endswith("gave RGB")


def test_decode_of_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no image file at .*missing\.png"):
        decode(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not an ordinary file"):
        decode(tmp_path / "pipe")
    with pytest.raises(ImageError, match="may not be read"):
        decode(Path("a\0b"))


def test_decode_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal itself is simulated."""
    path = save(noise(2, 2), tmp_path / "secret.png")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png may not be read: Permission denied"):
        decode(path)


def bomb(side: int) -> bytes:
    """A small PNG that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_decode_refuses_a_decompression_bomb(tmp_path: Path, side: int) -> None:
    """Between Pillow's warning and its own error, and beyond that."""
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    with pytest.raises(ImageError, match=r"bomb\.png has .*pixels"):
        decode(path)


def test_decode_from_many_threads(tmp_path: Path) -> None:
    paths = [save(noise(32, 32, seed), tmp_path / f"{seed}.png") for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        decoded = list(pool.map(decode, paths * 4))
    for index, image in enumerate(decoded):
        assert np.array_equal(np.asarray(image), np.asarray(noise(32, 32, index % 8)))


# --- preparing ----------------------------------------------------------------------------------


def test_preprocess_of_an_image_of_the_right_size_is_exact() -> None:
    image = noise(4, 4)
    prepared = preprocess(image, PLAIN)
    assert prepared.dtype == np.float32
    expected = np.asarray(image).transpose(2, 0, 1)[None] / np.float32(255)
    assert np.array_equal(prepared, expected)


def test_preprocess_normalises_per_channel() -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    how = Preprocessing(size=(4, 4), crop_ratio=1.0, mean=(0.5, 0.25, 0.1), std=(0.5, 0.5, 0.1))
    prepared = preprocess(image, how)
    assert prepared[0, :, 2, 3] == pytest.approx([1.0, -0.5, 1.0], abs=1e-6)


def test_preprocess_leaves_bytes_where_the_graph_normalises() -> None:
    image = noise(4, 4)
    prepared = preprocess(image, Preprocessing(size=(4, 4), crop_ratio=1.0, in_graph=True))
    assert prepared.dtype == np.uint8
    assert np.array_equal(prepared[0], np.asarray(image).transpose(2, 0, 1))


def test_in_graph_and_outside_agree() -> None:
    """The graph's arithmetic, carried out here, gives what the client would have sent."""
    outside = Preprocessing(size=(8, 8))
    inside = Preprocessing(size=(8, 8), in_graph=True)
    image = noise(20, 16)
    pixels = preprocess(image, inside).astype(np.float64)
    mean, std = (np.array(v)[:, None, None] for v in (outside.mean, outside.std))
    assert np.allclose((pixels / 255 - mean) / std, preprocess(image, outside), atol=1e-6)


def torchvision_resize_and_crop(image: Image.Image, resize: int, crop: int) -> np.ndarray:
    """What Resize(resize), CenterCrop(crop) do to a Pillow image, written down from their source.

    Resize: the short side becomes `resize`, the long one ``int(resize * long / short)``.
    CenterCrop: offsets are ``int(round((side - crop) / 2.0))``.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(resize * long / short)
    size = (resize, new_long) if width <= height else (new_long, resize)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    top = round((image.height - crop) / 2.0)
    left = round((image.width - crop) / 2.0)
    return np.asarray(image)[top : top + crop, left : left + crop]


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    crop=st.integers(4, 40),
    resize=st.integers(0, 12),
)
def test_preprocess_equals_torchvision(width: int, height: int, crop: int, resize: int) -> None:
    image = noise(width, height)
    resize += crop
    how = Preprocessing(size=(crop, crop), crop_ratio=crop / resize, in_graph=True)
    expected = torchvision_resize_and_crop(image, resize, crop)
    assert np.array_equal(preprocess(image, how)[0].transpose(1, 2, 0), expected)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ratio=st.floats(0.5, 1.0),
)
def test_preprocess_gives_any_size_from_any_size(
    width: int, height: int, size: tuple[int, int], ratio: float
) -> None:
    """No border is ever made up: of a white image every pixel is white."""
    image = Image.new("RGB", (width, height), WHITE)
    how = Preprocessing(size=size, crop_ratio=ratio, in_graph=True)
    prepared = preprocess(image, how)
    assert prepared.shape == (1, 3, *size)
    assert prepared.min() == 255


def test_preprocess_keeps_the_aspect() -> None:
    """A square in a wide image stays a square in a crop that is not square itself."""
    image = Image.new("RGB", (200, 100))
    image.paste(WHITE, (80, 30, 120, 70))  # 40x40, centred
    how = Preprocessing(size=(50, 80), crop_ratio=1.0, interpolation="nearest", in_graph=True)
    white = preprocess(image, how)[0, 0] == 255
    assert white.any(axis=1).sum() == white.any(axis=0).sum() == 20


def test_preprocess_refuses_what_would_not_fit_in_memory() -> None:
    with pytest.raises(ImageError, match="too long and narrow"):
        preprocess(Image.new("RGB", (100_000, 1)), Preprocessing(size=(224, 224)))


def test_load_images_keeps_order_and_names_the_culprit(tmp_path: Path) -> None:
    paths = [save(noise(4, 4, seed), tmp_path / f"{seed}.png") for seed in (2, 0, 1)]
    loaded = load_images(paths, PLAIN)
    assert loaded.shape == (3, 3, 4, 4)
    assert np.array_equal(loaded[1], preprocess(noise(4, 4, 0), PLAIN)[0])
    assert load_images([], PLAIN).shape == (0, 3, 4, 4)
    long = save(Image.new("RGB", (40_000, 1)), tmp_path / "long.png")
    with pytest.raises(ImageError, match=r"long\.png: .*too long"):
        load_images([*paths, long], Preprocessing(size=(224, 224)))


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "deep/c.webp", "notes.txt", ".hidden.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a.jpeg", "b.PNG", "deep/c.webp"]


def test_find_images_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no image in the folder"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match="there is no folder of images"):
        find_images(tmp_path / "missing")


def test_limit_is_below_what_pillow_refuses() -> None:
    """So that it is this limit that speaks, with the image's size in its sentence."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert images.MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS
