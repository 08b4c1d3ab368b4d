"""Whether images keep their class.

A network's answer is the class of its greatest logit. Where the reference's best two lie further
apart than twice a rung's tolerance, what is allowed cannot turn them: the one may lose as much as
the other gains. Such images are decided, and all of them must keep their class. What is quantised
is allowed so much that hardly any image is: of it, a share of all images must (`spec.precision`,
`AGREEMENT`). Where neither says anything of the images at hand, top-1 is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parnet_deploy.spec import LOGITS, Array
from parnet_deploy.spec.precision import needed_alike
from parnet_deploy.verify.compare import find_problem
from parnet_deploy.verify.result import Agreement
from parnet_deploy.verify.rungs import LOG_PROBABILITIES


def agreement_of(
    expected: Mapping[str, Array],
    actual: Mapping[str, Array],
    tolerance: float,
    share: float | None = None,
) -> Agreement | None:
    """Count the images that keep their class.

    Args:
        expected: the reference's outputs, by name: logits, or probabilities and their logarithms,
            which are logits but for a constant in every row.
        actual: the rung's.
        tolerance: greatest error that passes, relative to the greatest magnitude in the reference.
        share: of all images that must keep their class, decided or not; None where none must.

    Returns:
        The counts, or None where the outputs cannot be compared.
    """
    name = LOGITS if LOGITS in expected else LOG_PROBABILITIES
    if name not in expected or name not in actual:
        return None
    want, got = expected[name], actual[name]
    if want.ndim != 2 or find_problem(want, got) is not None:
        return None
    alike = want.argmax(1) == got.argmax(1)
    if want.shape[1] < 2:
        decided = np.zeros(len(want), bool)
    else:
        second, best = np.partition(want.astype(np.float64), -2, axis=1)[:, -2:].T
        decided = best - second > 2 * tolerance * float(np.abs(want).max())
    return Agreement(
        images=len(want),
        alike=int(alike.sum()),
        decided=int(decided.sum()),
        kept=int((decided & alike).sum()),
        needed=0 if share is None else needed_alike(len(want), share),
        share=share,
    )
