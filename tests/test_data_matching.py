"""Which logit answers for which class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.data import match_labels
from parnet_deploy.errors import DataError

NETWORK = ("tench", "goldfish", "shark", "ray")


def test_by_name_whatever_the_order() -> None:
    match = match_labels(sorted(NETWORK), NETWORK)
    assert match.logits == (1, 3, 2, 0)
    assert match.warning == ""


def test_some_of_the_network_s_classes() -> None:
    assert match_labels(("shark", "goldfish"), NETWORK).logits == (2, 1)


@given(data=st.data())
def test_by_name_each_class_has_the_logit_of_its_name(data: st.DataObject) -> None:
    network = data.draw(st.lists(st.text(max_size=4), unique=True, min_size=1, max_size=9))
    some = data.draw(st.lists(st.sampled_from(network), unique=True, min_size=1))
    match = match_labels(some, network)
    assert [network[logit] for logit in match.logits] == some
    assert not match.warning


def test_by_order_where_no_name_is_shared() -> None:
    """ImageNet's folders against readable labels."""
    match = match_labels(("n01440764", "n01443537", "n01484850", "n01496331"), NETWORK)
    assert match.logits == (0, 1, 2, 3)
    for part in ("n01440764, n01443537 and 2 more", "tench, goldfish and 2 more", "4 of each"):
        assert part in match.warning


def test_by_order_where_the_network_s_names_are_not_known() -> None:
    match = match_labels(("a", "b"), (), logits=2)
    assert match.logits == (0, 1)
    assert "class 0, class 1" in match.warning


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            ("goldfish", "ray", "shark", "tuna"),
            "1 of the data's 4 classes .*: tuna; it knows 4: te",
        ),
        (("goldfihs", "ray"), "is 'goldfihs' the network's 'goldfish'"),
        (("a", "b", "c"), "3 of the data's 3 classes are none of the network's: a, b, c; "),
        (tuple("abcdefgh"), "a, b, c, d, e and 3 more; it knows 4: tench, goldfish, shark, ray"),
    ],
    ids=["one", "misspelt", "fewer", "more"],
)
def test_classes_that_the_network_does_not_know(data: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        match_labels(data, NETWORK)


def test_more_classes_than_logits() -> None:
    with pytest.raises(
        DataError, match=r"3 of the data's 3 classes .* it knows 2: class 0, class 1"
    ):
        match_labels(("a", "b", "c"), (), logits=2)


def test_a_name_that_the_network_has_twice() -> None:
    """ImageNet's readable labels have two cranes: the bird and the machine."""
    with pytest.raises(DataError, match="several classes called crane"):
        match_labels(("crane", "ray"), ("crane", "ray", "crane"))
    assert match_labels(("ray",), ("crane", "ray", "crane")).logits == (1,)


def test_a_network_of_other_labels_than_logits() -> None:
    with pytest.raises(DataError, match="has 5 logits and 4 labels"):
        match_labels(NETWORK, NETWORK, logits=5)
