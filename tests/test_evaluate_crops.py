"""Ten crops, against torchvision's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from parnet_deploy.errors import ImageError
from parnet_deploy.images import preprocess, preprocess_ten
from parnet_deploy.spec import Preprocessing


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.integers(8, 30),
    st.sampled_from([0.75, 0.875, 1.0]),
)
def test_ten_crops_are_torchvisions(width: int, height: int, side: int, ratio: float) -> None:
    """The image is as large as the resized one may be, so that only the crops are compared."""
    image = photo(width, height)
    how = Preprocessing(size=(side, side), crop_ratio=ratio, interpolation="bilinear")
    resized = v2.Resize(round(side / ratio), antialias=True)(image)
    expected = torch.stack(
        [
            v2.Normalize(how.mean, how.std)(v2.ToDtype(torch.float32, scale=True)(v2.ToImage()(x)))
            for x in v2.TenCrop(side)(resized)
        ]
    ).numpy()
    got = preprocess_ten(image, how)
    assert got.shape == (10, 3, side, side)
    assert got.dtype == np.float32
    assert np.allclose(got, expected, atol=1e-6)


def test_the_fifth_crop_is_the_centre() -> None:
    image, how = photo(70, 50), Preprocessing(size=(24, 32))
    assert np.array_equal(preprocess_ten(image, how)[4:5], preprocess(image, how))


def test_ten_crops_of_a_graph_that_normalises_are_pixels() -> None:
    how = Preprocessing(size=(16, 16), crop_ratio=0.5, in_graph=True)
    image = photo(32, 32)
    got = preprocess_ten(image, how)
    whole = np.asarray(image).transpose(2, 0, 1)
    assert got.dtype == np.uint8
    assert np.array_equal(got[0], whole[:, :16, :16])
    assert np.array_equal(got[3], whole[:, 16:, 16:])
    assert np.array_equal(got[5], whole[:, :16, ::-1][:, :, :16]), "top left of the mirror image"


def test_ten_crops_of_what_is_too_long_are_refused() -> None:
    how = replace(Preprocessing(size=(2048, 2048)), crop_ratio=0.5)
    with pytest.raises(ImageError, match="too long and narrow"):
        preprocess_ten(Image.new("RGB", (1, 60_000)), how)
