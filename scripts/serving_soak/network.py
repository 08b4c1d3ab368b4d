"""The network that is served, images, and what its engine answers to each."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from parnet_deploy.bundle import open_engine_bundle
from parnet_deploy.images import decode_bytes, preprocess
from parnet_deploy.runtime import open_runner

Array = npt.NDArray[Any]

SPEC = {
    "name": "soak",
    "stem_widths": [4],
    "stem_strides": [2, 2],
    "stream_widths": [4, 8, 12],
    "stream_blocks": [1, 1, 1],
    "last_width": 16,
    "classes": 10,
    "image_size": [32, 32],
}
"""So little to compute that it is the server that is tested."""

BATCH = "1:1:8"


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image and the right answer to it.

    Attributes:
        file: PNG or JPEG.
        array: (1, 3, H, W) float32, as the network reads it.
        logits: (classes,).
    """

    file: bytes
    array: Array
    logits: Array


def build(folder: Path) -> Path:
    """Export the network with seeded weights, and build its engine for ONNX Runtime."""
    spec, model, engine = folder / "soak.json", folder / "model", folder / "engine"
    spec.write_text(json.dumps(SPEC))
    program = (sys.executable, "-m", "parnet_deploy")
    export = ("export", "--variant", spec, "--for", "onnxruntime", "--batch", BATCH)
    build_engine = ("build-engine", model, "--backend", "onnxruntime", "--threads", "1")
    for command, output in ((export, model), (build_engine, engine)):
        arguments = [str(part) for part in (*program, *command, "--output", output)]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return engine


def pictures(engine: Path, count: int, seed: int) -> tuple[Picture, ...]:
    """Images of which no two have the same answer.

    Args:
        engine: the bundle that answers.
        count: how many.
        seed: of the images.

    Raises:
        ValueError: two answers are too close to be told apart.
    """
    preprocessing = open_engine_bundle(engine).manifest.preprocessing
    rng = np.random.default_rng(seed)
    files = [_picture(rng, ("PNG", "JPEG")[number % 2]) for number in range(count)]
    arrays = [preprocess(decode_bytes(file), preprocessing) for file in files]
    runner = open_runner(open_engine_bundle(engine))
    try:
        logits = np.stack([runner.run({"images": array})["logits"][0] for array in arrays])
    finally:
        runner.close()
    for number, right in enumerate(logits[1:], start=1):
        if (np.abs(logits[:number] - right).max(axis=1) < 10 * _tolerance(right)).any():
            raise ValueError(f"image {number} has the same answer as one before it")
    return tuple(
        Picture(file=file, array=array, logits=right)
        for file, array, right in zip(files, arrays, logits, strict=True)
    )


def differ(found: Array, right: Array) -> bool:
    """Whether logits are not those of one image; batches are added up in another order."""
    if found.shape != right.shape or not np.isfinite(found).all():
        return True
    return bool(np.abs(found - right).max() > _tolerance(right))


def _tolerance(right: Array) -> float:
    return float(1e-4 * np.abs(right).max())


def _picture(rng: np.random.Generator, kind: str) -> bytes:
    cells = rng.integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(cells).resize((32, 32), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()
