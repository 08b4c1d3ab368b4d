"""DeployForm: which of the equivalent deploy forms a network takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from parnet_deploy.errors import SpecError

IdentityBN = Literal["keep", "fold"]
Squeeze = Literal["conv", "gemm"]
Join = Literal["concat", "sum"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployForm:
    """The choices that are left once every block is one biased 3x3 convolution.

    All forms are equal in exact arithmetic; they differ in the kernels a backend makes of them.

    Attributes:
        identity_bn: ``keep`` the skip's batch normalisation as an operator, or ``fold`` it into
            the squeeze and two per-channel factors.
        squeeze: the squeeze as a 1x1 ``conv`` on a (N,C,1,1) map or as a ``gemm`` on (N,C).
        join: a fusion's two inputs as one grouped convolution over a ``concat`` of channel
            slices, or as the ``sum`` of one grouped convolution per slice.
    """

    identity_bn: IdentityBN = "keep"
    squeeze: Squeeze = "gemm"
    join: Join = "concat"

    def __post_init__(self) -> None:
        """Refuse unknown choices.

        Raises:
            SpecError: a choice is not one of those above.
        """
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SpecError(f"{field} is one of {choices}, not {getattr(self, field)!r}")


_CHOICES = {
    "identity_bn": get_args(IdentityBN),
    "squeeze": get_args(Squeeze),
    "join": get_args(Join),
}


Backend = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]


def default_form(backend: Backend) -> DeployForm:
    """The form that serves a backend best, by the counts in docs/kernel-counts.md."""
    return _DEFAULTS[backend]


_DEFAULTS: dict[Backend, DeployForm] = {
    "tensorrt": DeployForm(),
    "tensorrt-rtx": DeployForm(),
    "onnxruntime": DeployForm(),
}
