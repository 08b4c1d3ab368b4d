"""What a recipe does to an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from parnet_deploy.images import preprocess
from parnet_deploy.spec import Preprocessing
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES
from parnet_deploy.train.transforms import training_transform

STILL = RECIPES["quick"].changed(shift=0.0, rotation=0.0, zoom=0.0)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def changed(recipe: Recipe, image: Image.Image, size: tuple[int, int], seed: int = 0) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return training_transform(recipe, Preprocessing(size=size, crop_ratio=1.0))(image)


@given(
    name=st.sampled_from(sorted(RECIPES)),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    image=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    seed=st.integers(0, 99),
)
def test_every_recipe_gives_the_networks_size(
    name: str, size: tuple[int, int], image: tuple[int, int], seed: int
) -> None:
    recipe = RECIPES[name].changed(erasing=0.5)
    result = changed(recipe, picture(*image), size, seed)
    assert (result.shape, result.dtype) == ((3, *size), torch.uint8)
    assert torch.equal(result, changed(recipe, picture(*image), size, seed))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_recipe_without_changes_trains_on_the_pixels_of_deployment(interpolation: str) -> None:
    how = Preprocessing(
        size=(16, 16),
        crop_ratio=1.0,
        interpolation=interpolation,  # type: ignore[arg-type]
        in_graph=True,
    )
    image = picture(29, 29)
    assert np.array_equal(training_transform(STILL, how)(image).numpy(), preprocess(image, how)[0])


@pytest.mark.parametrize(
    "change",
    [
        {"shift": 0.2},
        {"rotation": 20.0},
        {"zoom": 0.3},
        {"flip": 1.0},
        {"colour_jitter": 0.5},
        {"rand_augment": 2},
        {"erasing": 1.0},
        {"crop": "random-resized"},
        {"crop": "shift", "shift": 0.2},
    ],
)
def test_every_change_changes_something(change: dict[str, object]) -> None:
    image = picture(24, 24)
    plain = changed(STILL, image, (24, 24))
    results = [changed(STILL.changed(**change), image, (24, 24), seed) for seed in range(5)]
    assert any(not torch.equal(result, plain) for result in results)


@pytest.mark.parametrize("crop", ["whole", "shift", "random-resized"])
@pytest.mark.parametrize("change", [{"shift": 0.2}, {"rotation": 20.0}, {"zoom": 0.3}])
def test_no_way_to_crop_leaves_another_change_out(crop: str, change: dict[str, float]) -> None:
    image, plain = picture(24, 24), STILL.changed(crop=crop)
    assert any(
        not torch.equal(
            changed(plain, image, (24, 24), seed),
            changed(plain.changed(**change), image, (24, 24), seed),
        )
        for seed in range(5)
    )


def test_a_mirror_image_is_one() -> None:
    image = picture(24, 16)
    mirrored = changed(STILL.changed(flip=1.0), image, (16, 24))
    assert torch.equal(mirrored, changed(STILL, image, (16, 24)).flip(2))


def test_shifting_moves_by_at_most_its_part_and_shows_black() -> None:
    """CIFAR's: padded by 4 of 32 pixels, cropped anywhere."""
    recipe = RECIPES["cifar-400"].changed(flip=0.0)
    image = picture(32, 32)
    original = changed(STILL, image, (32, 32))
    padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
    places = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    seen = set()
    for seed in range(40):
        result = changed(recipe, image, (32, 32), seed)
        (place,) = [at for at, crop in places.items() if torch.equal(result, crop)]
        seen.add(place)
    assert len(seen) > 20


def test_erased_rectangles_are_noise_of_the_datas_kind() -> None:
    how = Preprocessing(size=(64, 64), crop_ratio=1.0, mean=(0.2, 0.5, 0.7), std=(0.05,) * 3)
    transform = training_transform(STILL.changed(erasing=1.0), how)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = torch.stack([transform(Image.new("RGB", (64, 64))) for _ in range(40)])
    noise = results.movedim(1, 0).flatten(1)[:, results.amax(1).flatten() > 0].double() / 255
    assert noise.mean(1).tolist() == pytest.approx([0.2, 0.5, 0.7], abs=0.005)
    assert noise.std(1).tolist() == pytest.approx([0.05] * 3, abs=0.005)
    assert 0.02 < (results.amax(1) > 0).double().mean() < 0.33  # torchvision's areas
