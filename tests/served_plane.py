"""What tests of the data plane share: bodies, a plane with a model, and how requests ended."""

from __future__ import annotations

import base64
import io
import json
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import (
    CLASSES,
    SETTINGS,
    SIGNATURE,
    echo_runner,
    serving,
)

from parnet_deploy.runtime.base import Runner
from parnet_deploy.serve.plane import DataPlane
from parnet_deploy.serve.recording import Recorder
from parnet_deploy.serve.settings import ServeSettings
from parnet_deploy.serve.signature import Signature
from parnet_deploy.spec import Array


def png(red: int) -> bytes:
    """An image file of one colour, of which 2x2 pixels are what the model reads."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def body(array: Array, **changes: Any) -> bytes:
    """A request of the Open Inference Protocol, all JSON."""
    tensor = {
        "name": "images",
        "shape": list(array.shape),
        "datatype": "FP32",
        "data": array.ravel().tolist(),
    }
    return json.dumps({"inputs": [tensor | changes]}).encode()


def encoded_body(*files: bytes) -> bytes:
    """A request with image files in place of a tensor."""
    data = [base64.b64encode(file).decode() for file in files]
    tensor = {"name": "images", "shape": [len(files)], "datatype": "BYTES", "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_body(array: Array) -> tuple[bytes, int]:
    """A request with its tensor behind the JSON, and the length of that."""
    tensor = {
        "name": "images",
        "shape": list(array.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + array.tobytes(), len(head)


def first_numbers(response: bytes, rows: int) -> list[float]:
    """The first logit of each row."""
    data = np.array(json.loads(response)["outputs"][0]["data"]).reshape(rows, CLASSES)
    numbers: list[float] = data[:, 0].tolist()
    return numbers


@contextmanager
def plane_of(
    runner: Runner | None = None,
    settings: ServeSettings = SETTINGS,
    signature: Signature = SIGNATURE,
    **options: Any,
) -> Any:
    """A data plane with a model that was started."""
    with serving(lambda: runner or echo_runner(signature), settings, signature, **options) as model:
        recorder = Recorder(signature)
        recorder.watch(lambda: pytest.fail("not asked here"))
        yield DataPlane(model, recorder)


def counts(recorder: Recorder) -> dict[str, int]:
    """How requests ended, where any did."""
    with recorder.counted():
        found = {"answered": recorder.total.count, "cancelled": recorder.cancelled_ones.count}
        tallies = recorder.rejected_for | recorder.failed_for
        found |= {str(reason): tally.count for reason, tally in tallies.items()}
    return {name: count for name, count in found.items() if count}


async def infer(plane: DataPlane, content: bytes, header_length: int | None = None) -> bytes:
    response, _ = await plane.infer("tiny", None, content, header_length)
    return response.body
