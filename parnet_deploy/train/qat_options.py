"""What a quantisation-aware training is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from parnet_deploy.errors import SpecError, UsageError
from parnet_deploy.spec import Backend
from parnet_deploy.spec.precision import PRECISIONS, Precision
from parnet_deploy.spec.quantisation import Scheme, scheme_of
from parnet_deploy.train.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class QatOptions:
    """How a training takes quantisation into account.

    Attributes:
        precision: ``int8`` or ``fp8``.
        target: whose scheme is followed: which activations are quantised, and into which type.
        observe: part of the training in which activations' ranges follow their values; then they
            stay. More than 0, and 1 lets them move to the end.
    """

    precision: Precision
    target: Backend = "tensorrt"
    observe: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a precision that needs no such training, a target that does not compute in
                it, or a part that is none.
        """
        if self.precision not in PRECISIONS:
            raise UsageError(f"--qat is int8 or fp8, not '{self.precision}'")
        if self.target not in get_args(Backend):
            choices = ", ".join(get_args(Backend))
            raise UsageError(f"--qat-for is one of {choices}; not '{self.target}'")
        try:
            scheme = scheme_of(self.precision, self.target)
        except SpecError as exc:
            raise UsageError(f"--qat {self.precision} --qat-for {self.target}: {exc}") from exc
        if scheme is None:
            raise UsageError(
                f"--qat is int8 or fp8: {self.precision} is not quantised, so that any checkpoint "
                f"does for export --precision {self.precision}"
            )
        if not 0.0 < self.observe <= 1.0:
            raise UsageError(f"--qat-observe is a part in (0, 1], not {self.observe:g}")

    @property
    def scheme(self) -> Scheme:
        """What is quantised, and into what."""
        found = scheme_of(self.precision, self.target)
        if found is None:
            raise ValueError(f"{self.precision} is not quantised")
        return found


def check_settings(settings: Settings) -> None:
    """Refuse ways to carry out a training that would change what quantisation does to it.

    Raises:
        UsageError: numbers of less than float32, in which no quantised value can be told from the
            next; or statistics shared, where all are frozen.
    """
    if settings.precision != "fp32":
        raise UsageError(
            f"--qat computes in fp32, in which quantised values are exact; leave away --precision "
            f"{settings.precision}"
        )
    if settings.sync_bn:
        raise UsageError(
            "--qat keeps the statistics of batch normalisations as they are; leave away --sync-bn"
        )
