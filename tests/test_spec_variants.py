"""Variants by name."""

from __future__ import annotations

import pytest

from parnet_deploy.errors import UsageError
from parnet_deploy.spec import VARIANTS, variant


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_named_after_its_spec(name: str) -> None:
    assert variant(name).spec.name == name
    assert variant(f"ParNet-{name.upper()}") == variant(name)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        *(("xxl", "xl"), ("cifarm", "cifar-m"), ("digit", "digits")),
        *(("paret-l", "l"), ("ParNet-XXL", "xl")),
    ],
)
def test_the_nearest_is_suggested(wrong: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        variant(wrong)
    message = str(caught.value)
    assert f"'{wrong}'" in message
    assert f"did you mean '{nearest}'?" in message
    assert all(name in message for name in VARIANTS)


def test_imagenet_dropout_is_for_the_large_ones() -> None:
    assert {n: variant(n).spec.dropout for n in ("s", "m", "l", "xl")} == {
        "s": 0.0,
        "m": 0.0,
        "l": 0.1,
        "xl": 0.1,
    }
