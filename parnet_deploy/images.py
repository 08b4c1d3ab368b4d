"""Images: decoded with Pillow, and prepared as the arrays that a network reads.

What `decode` gives is always 8-bit RGB, upright. The preprocessing is torchvision's and timm's for
evaluation, to the same rounding: resize with antialiasing until the image just covers
``round(crop / crop_ratio)`` pixels both ways (the other side is rounded down), crop the centre
(offsets are rounded to even), scale to [0, 1], subtract the mean, divide by the standard deviation.
Ten crops, for those who want them, are torchvision's as well.

Decoding takes up to 8 bytes of memory a pixel, whatever the file's kind: Pillow's image as it is in
the file (up to 4) and upright or as RGB (4); and what its decoder of the format needs for itself,
of which WebP's is the largest (16 in all).
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from parnet_deploy.errors import ImageError
from parnet_deploy.spec import Array, Preprocessing

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is read: pictures only, nothing that runs a program of its own."""

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes by which `find_images` knows an image, in lower case."""

MAX_PIXELS = 100_000_000
"""Largest image in pixels; a small file may claim to hold many more than memory has room for."""

_MAX_16_BIT = 65535

_TILE = 512
"""Side of what is converted at a time, in pixels."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of that EXIF orientation upright."""

_warnings_lock = threading.Lock()


def decode(path: Path) -> Image.Image:
    """Read a file as an upright 8-bit RGB image.

    The EXIF orientation is applied. Transparent pixels show white behind them. 16-bit grey values
    are scaled to 8 bits, not clipped. Of several frames the first is taken.

    Args:
        path: an image file of one of `FORMATS`, whatever its suffix.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: the file is missing, may not be read, or is not a whole image of a size and
            kind that can be used; the message names it.
    """
    _check_file(path)
    return _decode(path, str(path), MAX_PIXELS)


def decode_bytes(
    data: bytes, *, name: str = "the image", max_pixels: int = MAX_PIXELS, spent: int = 0
) -> Image.Image:
    """Read an image file that is in memory, as `decode` reads one on disk.

    Args:
        data: the file's bytes.
        name: what messages call it.
        max_pixels: the largest image that is accepted; its header is asked before it is decoded.
        spent: pixels of images that were decoded before and count towards them.

    Returns:
        The image in mode RGB.

    Raises:
        ImageError: it is not a whole image of a size and kind that can be used.
    """
    if not data:
        raise ImageError(f"{name} is empty")
    return _decode(io.BytesIO(data), name, max_pixels, spent)


def _decode(source: Path | io.BytesIO, name: str, max_pixels: int, spent: int = 0) -> Image.Image:
    try:
        with _silent():
            image = Image.open(source, formats=FORMATS)
        with image:
            _check_pixels(name, image.size, max_pixels, spent)
            image.load()
            return _rgb(name, _upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError(f"{name} is not an image of a known format ({_known()})") from exc
    except Image.DecompressionBombError as exc:
        raise ImageError(f"{name} has more than {max_pixels} pixels") from exc
    except PermissionError as exc:
        raise ImageError(f"{name} may not be read: {exc.strerror}") from exc
    except Exception as exc:  # its decoders raise almost anything on damaged files
        raise ImageError(f"{name} is damaged or cut short: {_reason(exc)}") from exc


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Array:
    """Make an image what a network reads.

    Args:
        image: an RGB image, as `decode` gives it.
        preprocessing: how.

    Returns:
        (1, 3, H, W): float32, normalised; or uint8 in [0, 255] where the graph normalises.

    Raises:
        ImageError: the image is so long and narrow that resized it would have too many pixels.
    """
    centre = _centre(_resize(image, preprocessing), preprocessing.size)
    return normalise(_stack([centre]), preprocessing)


def preprocess_ten(image: Image.Image, preprocessing: Preprocessing) -> Array:
    """Make an image ten crops: its four corners and its centre, and those of its mirror image.

    As torchvision's ``TenCrop`` orders them: top left, top right, bottom left, bottom right,
    centre; then the same five of the image mirrored left to right. Ten-crop testing is from
    Krizhevsky, Sutskever, Hinton (2012), section 4.1.

    Args:
        image: an RGB image, as `decode` gives it.
        preprocessing: how; the crops are taken from what `preprocess` crops the centre of.

    Returns:
        (10, 3, H, W): float32, normalised; or uint8 in [0, 255] where the graph normalises.

    Raises:
        ImageError: the image is so long and narrow that resized it would have too many pixels.
    """
    resized = _resize(image, preprocessing)
    mirrored = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crops = [crop for side in (resized, mirrored) for crop in _five(side, preprocessing.size)]
    return normalise(_stack(crops), preprocessing)


def normalise(pixels: Array, preprocessing: Preprocessing) -> Array:
    """Scale and normalise pixels, unless the graph does it.

    Args:
        pixels: (N, 3, H, W) uint8.
        preprocessing: mean and standard deviation, and whether the graph applies them.

    Returns:
        (N, 3, H, W): float32 ``(x / 255 - mean) / std``; or the same uint8 values.
    """
    if preprocessing.in_graph:
        return np.ascontiguousarray(pixels)
    mean = np.asarray(preprocessing.mean, np.float32)[:, None, None]
    std = np.asarray(preprocessing.std, np.float32)[:, None, None]
    normalised = np.array(pixels, np.float32, order="C")
    normalised /= np.float32(255)  # in place: new memory for each step takes longer than the step
    normalised -= mean
    normalised /= std
    return normalised


def load_images(paths: Iterable[Path], preprocessing: Preprocessing) -> Array:
    """Decode and prepare several files.

    Returns:
        (N, 3, H, W), float32 or uint8 as `preprocess` gives them, in the order of `paths`.

    Raises:
        ImageError: one of them cannot be used; the message names it.
    """
    arrays = [load_image(path, preprocessing) for path in paths]
    if not arrays:
        return np.empty((0, 3, *preprocessing.size), preprocessing.dtype)
    return np.concatenate(arrays)


def load_image(path: Path, preprocessing: Preprocessing) -> Array:
    """Decode and prepare one file.

    Returns:
        (1, 3, H, W), float32 or uint8 as `preprocess` gives it.

    Raises:
        ImageError: it cannot be used; the message names it.
    """
    image = decode(path)
    try:
        return preprocess(image, preprocessing)
    except ImageError as exc:
        raise ImageError(f"{path}: {exc}") from exc


def find_images(folder: Path) -> list[Path]:
    """Image files in a folder and the folders below it, sorted by path; hidden ones are left out.

    Raises:
        ImageError: there is no such folder, it may not be read, or no image is in it.
    """
    if not folder.is_dir():
        raise ImageError(f"there is no folder of images at {folder}")
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        raise ImageError(f"there is no image in the folder {folder} ({_known()})")
    return sorted(found)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as exc:
        raise ImageError(f"there is no image file at {path}") from exc
    except (OSError, ValueError) as exc:
        raise ImageError(f"{path} may not be read: {_reason(exc)}") from exc
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path} is a folder, not an image file")
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise ImageError(f"{path} is not an ordinary file")
    if status.st_size == 0:
        raise ImageError(f"{path} is empty")


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int, spent: int) -> None:
    if size[0] * size[1] > max_pixels - spent:
        before = f" together with the {spent} of those before it" if spent else ""
        raise ImageError(
            f"{name} has {size[0]}x{size[1]} pixels, and at most {max_pixels} are accepted{before}"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data says; damaged EXIF data do not make it unreadable."""
    try:
        with _silent():
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - its parser raises almost anything on damaged data
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    image.close()  # its pixels are not needed twice
    return turned


def _rgb(name: str, image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB."""
    if image.mode.startswith("I"):
        return _by_tiles(image, partial(_eight_bit, name))
    if image.mode == "F":
        raise ImageError(
            f"{name} holds floating-point pixels, whose white is not known; save it as 8 or 16 bit"
        )
    if image.has_transparency_data:
        return _by_tiles(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_tiles(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB tile by tile: what lies in between takes a tile's memory only."""
    made = Image.new("RGB", image.size, None)
    for top in range(0, image.height, _TILE):
        bottom = min(top + _TILE, image.height)
        for left in range(0, image.width, _TILE):
            right = min(left + _TILE, image.width)
            made.paste(convert(image.crop((left, top, right, bottom))), (left, top))
    return made


def _on_white(image: Image.Image) -> Image.Image:
    """What is seen of an image in front of white."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _eight_bit(name: str, image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey: 65535 is 255. Pillow itself would clip at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > _MAX_16_BIT:
        raise ImageError(f"{name} holds more than 16 bits a pixel; save it as 8 or 16 bit")
    scaled = values.astype(np.uint32)
    scaled *= 255
    scaled += _MAX_16_BIT // 2
    scaled //= _MAX_16_BIT
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _five(image: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    """Crops at the four corners, and at the centre."""
    height, width = size
    right, bottom = image.width - width, image.height - height
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    return [*(_crop(image, left, top, size) for left, top in corners), _centre(image, size)]


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return _crop(image, round((image.width - width) / 2), round((image.height - height) / 2), size)


def _crop(image: Image.Image, left: int, top: int, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.crop((left, top, left + width, top + height))


def _stack(crops: list[Image.Image]) -> Array:
    """N images of one size as (N, 3, H, W) uint8."""
    return np.stack([np.asarray(crop).transpose(2, 0, 1) for crop in crops])


def _resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The smallest image of the same aspect that covers the crop with its margin."""
    height, width = (round(side / preprocessing.crop_ratio) for side in preprocessing.size)
    if height * image.width >= width * image.height:
        size = height * image.width // image.height, height
    else:
        size = width, width * image.height // image.width
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"an image of {image.width}x{image.height} pixels is too long and narrow to be "
            f"resized to {size[0]}x{size[1]}"
        )
    if size == image.size:
        return image
    return image.resize(size, _FILTERS[preprocessing.interpolation])


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Pillow's warnings (odd metadata, its own pixel limit) from the terminal.

    Python's warning filters belong to the whole process, hence the lock.
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _raise_unreadable(exc: OSError) -> None:
    raise ImageError(f"the folder {exc.filename} may not be read: {exc.strerror}") from exc


def _known() -> str:
    return ", ".join(FORMATS)


def _reason(exc: Exception) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__
