"""First runs of an engine: they take longer than others, and show whether it works at all."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from parnet_deploy.errors import EngineError, ParnetDeployError, RunnerError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array, check_feeds


def warm_up(runner: Runner, signature: Signature, settings: ServeSettings) -> None:
    """Run black images, as many at once as contexts, in every batch size that is usual.

    Raises:
        EngineError: a run failed, or gave what its signature does not say, or what is not finite.
    """
    for size in batch_sizes(signature, settings):
        feeds = {spec.name: np.zeros(spec.concrete(size), spec.dtype) for spec in signature.inputs}
        for _ in range(settings.warm_up):
            _run_side_by_side(runner, signature, feeds, settings.contexts)


def batch_sizes(signature: Signature, settings: ServeSettings) -> tuple[int, ...]:
    """The smallest that the engine takes and, with dynamic batching, the largest that is made."""
    batch = signature.batch
    largest = max(batch.min, min(batch.max, settings.max_batch))
    return tuple(sorted({batch.min, largest}))


def _run_side_by_side(
    runner: Runner, signature: Signature, feeds: Mapping[str, Array], contexts: int
) -> None:
    """A run on each context: whoever runs one after the other may get the same one every time."""
    if contexts == 1:
        _run(runner, signature, feeds)
        return
    together = threading.Barrier(contexts)
    errors: list[ParnetDeployError] = []

    def run() -> None:
        together.wait()
        try:
            _run(runner, signature, feeds)
        except EngineError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, name="warm-up", daemon=True) for _ in range(contexts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _run(runner: Runner, signature: Signature, feeds: Mapping[str, Array]) -> None:
    try:
        outputs = runner.run(feeds)
        check_feeds(signature.outputs, outputs)
    except RunnerError as exc:
        raise EngineError(f"'{signature.name}' failed its first run: {exc}") from exc
    except Exception as exc:  # whatever it is, the engine cannot be served
        raise EngineError(
            f"'{signature.name}' failed its first run: {type(exc).__name__}: {exc}"
        ) from exc
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise EngineError(
                f"'{signature.name}' gives values that are not finite in '{name}' for a black "
                "image; 'parnet-deploy verify' says where they arise"
            )
