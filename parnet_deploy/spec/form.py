"""DeployForm: which of the equivalent deploy forms a network takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from parnet_deploy.errors import SpecError

IdentityBN = Literal["keep", "fold"]
Squeeze = Literal["conv", "gemm", "mixed"]
Join = Literal["view", "concat"]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployForm:
    """The choices that are left once every block is one biased 3x3 convolution.

    All forms are equal in exact arithmetic; they differ in the kernels a backend makes of them.

    Attributes:
        identity_bn: ``keep`` the skip's batch normalisation as an operator, or ``fold`` it into
            the squeeze and two per-channel factors.
        squeeze: the squeeze as a 1x1 ``conv`` on a (N,C,1,1) map, as a ``gemm`` on (N,C), or
            ``mixed``: a convolution in plain blocks, a Gemm in skip and fusion blocks.
        join: how a fusion brings the channels of its two inputs into its two groups: by
            concatenating them as a ``view`` with an axis of groups, or by a ``concat`` of slices.
        layout: axes of what a gated block computes behind its convolution: ``nchw``, or ``nhwc``
            between two transposes. What crosses from block to block is (N, C, H, W) in both.
    """

    identity_bn: IdentityBN = "keep"
    squeeze: Squeeze = "mixed"
    join: Join = "view"
    layout: Layout = "nchw"

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
    "layout": get_args(Layout),
}


Backend = Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino", "ncnn"]


def default_form(backend: Backend) -> DeployForm:
    """The form that serves a backend best.

    TensorRT: fewest kernels, in three streams (docs/kernel-counts.md). ONNX Runtime on the CPU:
    all forms lie within 4 % of each other (benchmarks/results); this one had the lowest median.
    OpenVINO: the folded identity saves a tenth of the time (docs/engines.md).
    """
    return _DEFAULTS[backend]


_DEFAULTS: dict[Backend, DeployForm] = {
    "tensorrt": DeployForm(squeeze="gemm", layout="nhwc"),
    "tensorrt-rtx": DeployForm(squeeze="gemm", layout="nhwc"),
    "onnxruntime": DeployForm(squeeze="gemm"),
    "openvino": DeployForm(identity_bn="fold", squeeze="conv", join="concat"),
    "ncnn": DeployForm(identity_bn="fold", squeeze="gemm"),
}
