"""The protocol's names of element types."""

from __future__ import annotations

from collections.abc import Mapping

BYTES = "BYTES"
"""Elements of any length: here a file in a format such as JPEG, or text."""

NAMES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's name by numpy's. BF16 is not among them, as numpy has no such type."""

KNOWN = frozenset({*NAMES.values(), "BF16", BYTES})
"""Every name that the protocol has."""


def datatype_of(dtype: str) -> str:
    """The protocol's name of one of numpy's element types, such as FP32 for ``float32``."""
    return NAMES[dtype]


def config_type_of(dtype: str) -> str:
    """Its name in a model configuration of Triton, such as TYPE_FP32 for ``float32``."""
    return f"TYPE_{NAMES[dtype]}"
