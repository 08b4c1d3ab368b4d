"""Variants by name."""

from __future__ import annotations

from dataclasses import replace

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


def test_a_name_says_what_a_variant_is() -> None:
    for name, known in VARIANTS.items():
        spec = known.spec
        assert ("depth" in name) == (11 in known.tables and len(known.tables) == 1)
        if "depth" in name:
            base, _, number = name.partition("-depth")
            assert replace(variant(base).spec.with_depth(int(number)), name=name) == spec
        assert ("ensemble" in name) == (spec.members > 1)
        assert ("relu" in name) == (spec.activation == "relu")
        assert ("no-sse" in name) == (not spec.squeeze)


def test_dropout_of_the_cifar_networks() -> None:
    assert {
        (variant(f"cifar-{size}").spec.dropout, variant(f"cifar-{size}").spec.conv_dropout)
        for size in "sml"
    } == {(0.2, 0.2)}
    assert all(v.spec.conv_dropout == 0.0 for n, v in VARIANTS.items() if "cifar" not in n)


def test_imagenet_dropout_is_for_the_large_ones() -> None:
    assert {n: variant(n).spec.dropout for n in ("s", "m", "l", "xl")} == {
        "s": 0.0,
        "m": 0.0,
        "l": 0.1,
        "xl": 0.1,
    }
