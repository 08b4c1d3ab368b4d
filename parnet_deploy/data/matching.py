"""Which logit of a network answers for which class of a data set."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from parnet_deploy.data.naming import enumerate_names
from parnet_deploy.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMatch:
    """A data set's classes and a network's.

    Attributes:
        logits: for each class of the data set, the index of its logit.
        warning: what people should know about how they were matched; empty where names told.
    """

    logits: tuple[int, ...]
    warning: str = ""


def match_labels(
    data_labels: Sequence[str], network_labels: Sequence[str], *, logits: int | None = None
) -> LabelMatch:
    """Find the logit of each class: by name, or, where no name is shared, by order.

    Args:
        data_labels: class names of a data set; all of the network's, or some.
        network_labels: class names in the order of the logits; empty where they are not known.
        logits: how many the network has; as many as it has labels if None.

    Raises:
        DataError: a class of the data set is none of the network's, or may be several; or the
            network has not one label for each logit.
    """
    logits = len(network_labels) if logits is None else logits
    network_labels = network_labels or [f"class {index}" for index in range(logits)]
    if len(network_labels) != logits:
        raise DataError(f"the network has {logits} logits and {len(network_labels)} labels")
    known = set(network_labels)
    missing = [label for label in data_labels if label not in known]
    if not missing:
        return LabelMatch(logits=_by_name(data_labels, network_labels))
    if len(missing) == len(data_labels) == len(network_labels):
        return LabelMatch(
            logits=tuple(range(len(data_labels))),
            warning=(
                f"the data's classes ({enumerate_names(data_labels, 2)}) have other names than the "
                f"network's ({enumerate_names(network_labels, 2)}); since there are "
                f"{len(data_labels)} of each, they are matched in this order"
            ),
        )
    raise DataError(_said_missing(missing, data_labels, network_labels))


def _by_name(data_labels: Sequence[str], network_labels: Sequence[str]) -> tuple[int, ...]:
    times = Counter(network_labels)
    if several := [label for label in data_labels if times[label] > 1]:
        raise DataError(
            f"the network has several classes called {enumerate_names(several)}, so that a name "
            f"does not say which is meant"
        )
    places = {label: index for index, label in enumerate(network_labels)}
    return tuple(places[label] for label in data_labels)


def _said_missing(
    missing: Sequence[str], data_labels: Sequence[str], network_labels: Sequence[str]
) -> str:
    near = difflib.get_close_matches(missing[0], network_labels, n=1)
    hint = f"; is '{missing[0]}' the network's '{near[0]}'?" if near else ""
    return (
        f"{len(missing)} of the data's {len(data_labels)} classes are none of the network's: "
        f"{enumerate_names(missing)}; it knows {len(network_labels)}: "
        f"{enumerate_names(network_labels)}{hint}"
    )
