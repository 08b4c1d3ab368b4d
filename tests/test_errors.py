"""The error tree, as its own docstring draws it."""

from __future__ import annotations

import inspect
import re

import pytest

from parnet_deploy import errors
from parnet_deploy.errors import ParnetDeployError, UsageError, os_reason

TREE = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception)
}


def test_the_drawing_shows_every_error_below_its_parent() -> None:
    drawn: list[tuple[int, str]] = [
        (match.start(1), match[1])
        for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"[ │├└─]*([A-Z]\w+Error)\s", line))
    ]
    assert {name for _, name in drawn} == TREE.keys()
    path: list[tuple[int, str]] = []
    for column, name in drawn:
        path = [(c, n) for c, n in path if c < column]
        parents = [base.__name__ for base in TREE[name].__bases__]
        assert parents == [path[-1][1] if path else "Exception"], name
        path.append((column, name))


@pytest.mark.parametrize("kind", TREE.values())
def test_wrong_usage_ends_with_2_and_all_else_with_1(kind: type[ParnetDeployError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)
    assert kind.__doc__


def test_what_the_system_says() -> None:
    assert os_reason(OSError(28, "No space left on device", "/x")) == "No space left on device"
    assert os_reason(OSError("odd")) == "odd"
