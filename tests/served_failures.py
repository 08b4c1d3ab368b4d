"""What tests of failing engines share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from served import (
    PATIENCE,
    SETTINGS,
    GatedOpener,
    GatedRunner,
    asked,
    serving,
    settle,
)

from parnet_deploy.errors import RequestError, RunnerError
from parnet_deploy.serve.engine.model import ServedModel

SECRET = "/srv/engines/secret.plan: cudaErrorIllegalAddress"


def opened_again(opener: GatedOpener) -> None:
    """Wait until the opener is asked."""
    opener.asked.get(timeout=PATIENCE)


def failing(opener: GatedOpener, backoff: Sequence[float] = (0, 0, 0), **changes: Any) -> Any:
    """A model that opens with this opener, and has been opened once."""
    clock = changes.pop("clock", None)
    options = {"clock": clock} if clock else {}
    return serving(opener, replace(SETTINGS, **changes), backoff=backoff, **options)


async def statuses(*tasks: asyncio.Task[Any]) -> list[int]:
    """What tasks were refused with."""
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, RequestError) for end in ends), ends
    return [end.status for end in ends if isinstance(end, RequestError)]


async def fail_once(model: ServedModel, runner: GatedRunner, number: float = 1) -> None:
    """A request that the engine fails."""
    task = asked(model, number)
    await settle()
    assert runner.begun() == [number]
    runner.finish(number, RunnerError(SECRET))
    assert await statuses(task) == [500]
