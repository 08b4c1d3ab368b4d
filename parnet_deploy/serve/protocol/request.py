"""An inference request: what a client asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parnet_deploy.spec import Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedImages:
    """Files in a format such as JPEG or PNG, in place of a tensor: datatype BYTES, shape [N]."""

    files: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedOutput:
    """An output that a client asked for.

    Attributes:
        name: its name.
        binary: as bytes behind the JSON, instead of numbers in it.
        classes: that many likeliest classes as ``score:index:label`` instead of the tensor; 0: the
            tensor (Triton's classification extension).
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InferRequest:
    """What a client asks for, checked against the model's signature.

    Attributes:
        inputs: by name: (N, 3, H, W) arrays of the model's dtype, or encoded images.
        outputs: what is wanted, in the client's order.
        id: the client's own name of the request; empty where it gave none.
    """

    inputs: Mapping[str, Array | EncodedImages]
    outputs: tuple[WantedOutput, ...]
    id: str = ""
    batch: int = field(default=1)
