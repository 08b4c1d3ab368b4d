"""Decoding in little memory: what is converted tile by tile is the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from parnet_deploy import images
from parnet_deploy.images import decode

RED = (255, 0, 0)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["grey", "big-endian", "signed"])
def test_every_16_bit_value_is_scaled_to_the_nearest(tmp_path: Path, kind: str) -> None:
    """Larger than a tile both ways, and no multiple of it."""
    values = np.resize(np.arange(65536), (523, 530))
    dtype = {"grey": "<u2", "big-endian": ">u2", "signed": "<i4"}[kind]
    path = save(Image.fromarray(values.astype(dtype)), tmp_path / "deep.tiff")
    with Image.open(path) as image:
        assert image.mode == {"grey": "I;16", "big-endian": "I;16B", "signed": "I"}[kind]
    expected = (values * 255 + 32767) // 65535
    np.testing.assert_array_equal(np.asarray(decode(path)), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_the_same_tile_by_tile(
    tmp_path: Path, mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 14, 4), dtype=np.uint8), "RGBA")
    options: dict[str, object] = {"RGBA": {}, "LA": {}}.get(
        mode,
        {"transparency": {"P": bytes(range(0, 256, 4)), "L": 17, "RGB": (1, 2, 3)}.get(mode)},
    )
    image = image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(image, tmp_path / "a.png", exif=exif, **options)
    with Image.open(path) as file:
        rgba = file.convert("RGBA")
    if orientation == 6:
        rgba = rgba.transpose(Image.Transpose.ROTATE_270)
    white = Image.new("RGBA", rgba.size, "white")
    expected = np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
    for side in (1, 4, 512):
        monkeypatch.setattr(images, "_TILE", side)
        np.testing.assert_array_equal(np.asarray(decode(path)), expected)


MEMORY = """
import sys
from pathlib import Path
from parnet_deploy.images import decode_bytes

def size(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

small, large = (Path(name).read_bytes() for name in sys.argv[1:])
decode_bytes(small)
Path("/proc/self/clear_refs").write_text("5")
before = size("VmRSS")
decode_bytes(large)
print(size("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["RGBA", "16-bit", "upright", "upright RGBA"])
def test_decoding_takes_at_most_8_bytes_a_pixel(tmp_path: Path, kind: str) -> None:
    side = 2000
    exif = Image.Exif()
    if "upright" in kind:
        exif[ExifTags.Base.Orientation] = 6
    files = []
    for length in (8, side):
        if kind == "16-bit":
            image = Image.fromarray(np.full((length, length), 30_000, np.uint16))
        else:
            image = Image.new("RGBA" if "RGBA" in kind else "RGB", (length, length), RED)
        files.append(save(image, tmp_path / f"{length}.png", exif=exif))
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 9 * side**2 + (8 << 20)
