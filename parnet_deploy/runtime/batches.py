"""Any number of images through a runner that takes a range of batch sizes."""

from __future__ import annotations

import numpy as np

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import RunnerError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.spec import Array


def run_batches(runner: Runner, images: Array, batch: BatchRange) -> Array:
    """Run images in batches as large as the runner takes.

    A last batch that is smaller than it takes is filled up with its own last image, and the
    answers to those are dropped.

    Args:
        runner: one input (N, 3, H, W), one output (N, classes).
        images: (M, 3, H, W), M at least 1, as the runner reads them.
        batch: batch sizes that it takes.

    Returns:
        (M, classes), in the order of the images.

    Raises:
        RunnerError: the runner has several inputs or outputs, there is no image, or a run failed.
    """
    if len(runner.inputs) != 1 or len(runner.outputs) != 1 or not len(images):
        raise RunnerError(
            "at least one image, one input and one output are needed, not "
            f"{len(images)}, {len(runner.inputs)} and {len(runner.outputs)}"
        )
    source, target = runner.inputs[0].name, runner.outputs[0].name
    answers = []
    for first in range(0, len(images), batch.max):
        part = images[first : first + batch.max]
        missing = max(0, batch.min - len(part))
        fed = np.concatenate([part, *[part[-1:]] * missing]) if missing else part
        answers.append(runner.run({source: fed})[target][: len(part)])
    return np.concatenate(answers)
