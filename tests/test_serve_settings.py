"""Limits of a server that cannot be are refused by the option's name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from parnet_deploy.errors import UsageError
from parnet_deploy.serve.settings import ServeSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queue": 0}, "--queue is at least 1, not 0"),
        ({"contexts": 0}, "--contexts is at least 1, not 0"),
        ({"max_pixels": -1}, "--max-pixels is at least 1, not -1"),
        ({"max_connections": 0}, "--max-connections is at least 1, not 0"),
        ({"max_body": 0}, "--max-body is 1 to "),
        ({"max_body": 2, "max_buffered": 1}, r"--max-body is 1 to 1 \(--max-buffered\), not 2"),
        ({"warm_up": -1}, "--warm-up is not negative, not -1"),
        ({"inline_below": -0.1}, "--inline-below is not negative, not -0.1"),
        ({"max_delay": math.inf}, "--max-delay is not negative, not inf"),
        ({"timeout": 0.0}, "--timeout is positive and finite, not 0.0"),
        ({"header_timeout": math.nan}, "--header-timeout is positive and finite, not nan"),
        ({"idle_timeout": -1.0}, "--idle-timeout is positive"),
        ({"grace": math.inf}, "--grace is positive and finite, not inf"),
        ({"stall": 0.0}, "--stall is positive"),
        (
            {"timeout": 1.0, "max_delay": 1.0},
            r"--max-delay is less than --timeout \(1.0\)",
        ),
        ({"port": 65536}, "a port is 0 to 65535, not 65536"),
        *(
            ({"api_key": key}, "an API key is one word of ASCII")
            for key in ("", " ", "two words", "key\n", "k\x00y", "schl\u00fcssel")
        ),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ServeSettings(**given)


def test_what_can_be_is_taken() -> None:
    settings = ServeSettings(port=0, max_delay=0.9, timeout=1.0, max_body=1, api_key="k")
    assert (settings.port, settings.max_delay, settings.max_body) == (0, 0.9, 1)
