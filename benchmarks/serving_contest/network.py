"""The network: its engines, images, and what the engines answer to them."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from parnet_deploy.bundle import open_engine_bundle
from parnet_deploy.images import decode_bytes, preprocess
from parnet_deploy.runtime import open_runner
from serving_contest.questions import differ

Array = npt.NDArray[Any]

IMAGES = 4
"""Every client begins with another one: answers that are swapped are noticed."""

THREADS = 1

SMALL = Path(__file__).with_name("small.json")
"""A ParNet with little to compute, so that what a server adds is seen."""

_COMMAND = (sys.executable, "-m", "parnet_deploy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """An engine and what it answers.

    Attributes:
        path: of its bundle.
        name: of its model.
        graph: the file that ONNX Runtime loads.
        inputs: by image: (1, 3, H, W), as it reads them.
        logits: by image: (classes,).
        version: of ONNX Runtime.
    """

    path: Path
    name: str
    graph: Path
    inputs: tuple[Array, ...]
    logits: tuple[Array, ...]
    version: str


def build(variant: str, folder: Path, *, uint8: bool) -> Path:
    """Export a network with seeded weights and build its engine, where that has not been done.

    Args:
        variant: its name or the file of its spec.
        folder: where.
        uint8: whether the graph normalises pixels itself.
    """
    kind = "uint8" if uint8 else "fp32"
    engine = folder / f"{Path(variant).stem}-{kind}"
    if not engine.exists():
        model = folder / f"{Path(variant).stem}-{kind}-model"
        options = ["--preprocess"] if uint8 else []
        _call("export", "--variant", variant, "--for", "onnxruntime", "--force", *options)(model)
        build_engine = ("build-engine", model, "--backend", "onnxruntime", "--provider", "cpu")
        _call(*map(str, build_engine), "--threads", str(THREADS))(engine)
    return engine


def open_engine(path: Path, files: Sequence[bytes]) -> Engine:
    """Ask an engine for the images that will be sent.

    Args:
        path: of its bundle.
        files: images as JPEG.

    Raises:
        ValueError: it answers the same to two of them: they could not be told apart.
    """
    bundle = open_engine_bundle(path)
    preprocessing = bundle.manifest.preprocessing
    inputs = tuple(preprocess(decode_bytes(file), preprocessing) for file in files)
    runner = open_runner(bundle)
    try:
        logits = tuple(runner.run({"images": array})["logits"][0] for array in inputs)
    finally:
        runner.close()
    for number, first in enumerate(logits):
        if not all(differ(10 * first, 10 * other) for other in logits[:number]):
            raise ValueError(f"{path} answers the same to different images")
    return Engine(
        path=path,
        name=bundle.manifest.name,
        graph=path / bundle.manifest.stages[0].file,
        inputs=inputs,
        logits=logits,
        version=str(bundle.manifest.target["onnxruntime"]),
    )


def photographs(size: tuple[int, int], count: int = IMAGES) -> tuple[bytes, ...]:
    """JPEG files as smooth and as large as those of photographs.

    Args:
        size: height and width.
        count: how many.
    """
    return tuple(_photograph(size, seed) for seed in range(count))


def _photograph(size: tuple[int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    total = np.zeros((*size, 3), np.float32)
    for cells in (3, 7, 14, 28, 56):  # less contrast, the finer: as in nature
        noise = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        large = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
        total += np.asarray(large, np.float32) * (3 / cells)
    total = (total - total.min()) / (total.max() - total.min())
    file = io.BytesIO()
    Image.fromarray((255 * total).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _call(*arguments: str) -> Any:
    def write(output: Path) -> None:
        command = [*_COMMAND, *arguments, "--output", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return write
