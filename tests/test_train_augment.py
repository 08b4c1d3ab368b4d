"""Random shifts, turns and zooms."""

from __future__ import annotations

import pytest
import torch

from parnet_deploy.train import Augmentation
from parnet_deploy.train import augment as augment_module
from parnet_deploy.train.augment import augment


def square(height: int = 32, width: int = 32) -> torch.Tensor:
    """A bright square of 8x8 pixels in the middle of a dark image."""
    image = torch.zeros(1, 3, height, width)
    top, left = height // 2 - 4, width // 2 - 4
    image[:, :, top : top + 8, left : left + 8] = 1.0
    return image


def fixed(monkeypatch: pytest.MonkeyPatch, *parts: float) -> None:
    """Let the four draws (turn, zoom, shifts in x and y) be these parts of their limits."""
    draws = iter(parts)
    monkeypatch.setattr(
        augment_module, "_uniform", lambda n, limit: torch.full((n,), next(draws) * limit)
    )


def test_no_augmentation_changes_nothing() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert augment(images, Augmentation()) is images


def test_a_shift_is_so_many_parts_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 0, 0, 1, -1)
    shifted = augment(square(), Augmentation(shift=4 / 32))
    assert torch.allclose(shifted, torch.roll(square(), (4, -4), dims=(2, 3)), atol=1e-5)


def test_what_comes_in_is_black(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 0, 0, 1, 0)
    shifted = augment(torch.ones(1, 3, 16, 16), Augmentation(shift=0.25))
    assert float(shifted[..., 12:].abs().max()) == 0.0
    assert float(shifted[..., :12].min()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 32)])
def test_a_quarter_turn_of_a_square_is_that_square(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Also where the image is no square: turns do not shear."""
    fixed(monkeypatch, 1, 0, 0, 0)
    turned = augment(square(*size), Augmentation(rotation=90))
    assert torch.allclose(turned, square(*size), atol=1e-4)


def test_zoom_enlarges(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, 0, 1, 0, 0)
    larger = augment(square(), Augmentation(zoom=0.5))
    assert float(larger.sum()) == pytest.approx(1.5**2 * float(square().sum()), rel=0.05)


def test_every_image_is_changed_in_its_own_way_and_repeatably() -> None:
    images = square().repeat(4, 1, 1, 1)
    how = Augmentation(shift=0.1, rotation=20, zoom=0.1)
    torch.manual_seed(0)
    first = augment(images, how)
    torch.manual_seed(0)
    assert torch.equal(first, augment(images, how))
    assert not any(torch.equal(first[0], other) for other in first[1:])
    assert first.min() >= 0.0
    assert first.max() <= 1.0
