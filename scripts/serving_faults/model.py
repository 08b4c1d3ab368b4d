"""The served model, as the list needs to know it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parnet_deploy.bundle import EngineBundle, open_engine_bundle
from parnet_deploy.images import decode_bytes, preprocess
from parnet_deploy.runtime import Runner, open_runner
from serving_faults.wire import Answer, Connection, tensors

Array = npt.NDArray[Any]

NAME = "tiny"
"""What it is called, wherever it is served."""


@dataclass(kw_only=True)
class Model:
    """A model, and what its engine answers when no server is in between.

    Attributes:
        bundle: its engine.
        size: height and width of its images.
        most: images in a batch.
        classes: how many scores it gives.
        image: (1, 3, H, W) float32, an ordinary one.
        scores: (1, classes) float32, what the engine gives for it.
    """

    bundle: EngineBundle
    runner: Runner = field(init=False)
    image: Array = field(init=False)
    scores: Array = field(init=False)

    def __post_init__(self) -> None:
        """Ask the engine."""
        manifest = self.bundle.manifest
        self.size = manifest.preprocessing.size
        self.most = manifest.batch.max
        self.classes = len(self.bundle.labels)
        self.runner = open_runner(self.bundle)
        rng = np.random.default_rng(0)
        self.image = rng.normal(size=self.shape()).astype(np.float32)
        self.scores = self.run(self.image)

    def close(self) -> None:
        """Free the engine."""
        self.runner.close()

    @property
    def path(self) -> str:
        """Where inference is asked for."""
        return f"/v2/models/{NAME}/infer"

    def shape(self, batch: int = 1) -> list[int]:
        """Of its images."""
        return [batch, 3, *self.size]

    def run(self, images: Array) -> Array:
        """What the engine gives for images (N, 3, H, W)."""
        given = self.runner.run({"images": images})["logits"]
        return np.asarray(given)

    def scores_of(self, file: bytes) -> Array:
        """(1, classes), what the engine gives for an image file."""
        pixels = preprocess(decode_bytes(file), self.bundle.manifest.preprocessing)
        return self.run(pixels)

    def tensor(self, **changes: Any) -> dict[str, Any]:
        """The ordinary image as an input whose bytes stand behind the JSON."""
        return {
            "name": "images",
            "datatype": "FP32",
            "shape": self.shape(),
            "parameters": {"binary_data_size": self.image.nbytes},
        } | changes

    def numbers(self, data: Any = None, **changes: Any) -> dict[str, Any]:
        """The ordinary image as an input with its numbers in the JSON."""
        tensor = self.tensor(data=self.image.ravel().tolist() if data is None else data)
        del tensor["parameters"]
        return tensor | changes

    def good(self, image: Array | None = None) -> bytes:
        """A request that has to be answered with scores, as bytes."""
        image = self.image if image is None else image
        tensor = self.tensor(shape=list(image.shape), parameters={"binary_data_size": image.nbytes})
        output = {"name": "logits", "parameters": {"binary_data": True}}
        message = {"inputs": [tensor], "outputs": [output]}
        return tensors(self.path, message, image.tobytes())

    def good_problem(self, port: int) -> str:
        """What is wrong with a server's answer to a good request; empty where nothing is."""
        with Connection(port) as connection:
            connection.send(self.good())
            answer = connection.answer("POST")
        if answer is None:
            return "a good request got no answer"
        if answer.status != 200:
            return f"a good request got {answer.status}: {answer.error}"
        return scores_problem(answer, self.scores)


def open_model(engine: Path) -> Model:
    """A model of an engine bundle."""
    return Model(bundle=open_engine_bundle(engine))


def scores_problem(answer: Answer, expected: Array) -> str:
    """What is wrong with scores, in the JSON or behind it."""
    try:
        length = int(answer.headers.get("inference-header-content-length", len(answer.body)))
        (output,) = json.loads(answer.body[:length], parse_constant=_refuse)["outputs"]
        if "data" in output:
            found = np.array(output["data"], np.float32)
        else:
            found = np.frombuffer(answer.body[length:], np.float32)
        found = found.reshape(output["shape"])
    except (ValueError, KeyError, TypeError) as exc:
        return f"the answer holds no scores ({exc!r})"
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4, atol=1e-4):
        return "the scores are not the engine's"
    return ""


def probabilities_problem(answer: Answer, scores: Array, labels: Sequence[str]) -> str:
    """What is wrong with a classification of one image, whose scores are logits (1, classes)."""
    powers = np.exp(scores[0].astype(np.float64) - scores.max())
    expected = powers / powers.sum()
    try:
        found = {
            each["label"]: each["probability"]
            for each in json.loads(answer.body, parse_constant=_refuse)["predictions"]
        }
        given = [(expected[labels.index(label)], value) for label, value in found.items()]
    except (ValueError, KeyError, TypeError) as exc:
        return f"the answer holds no classes ({exc!r})"
    if not given or not np.allclose(*zip(*given, strict=True), rtol=1e-3, atol=1e-5):
        return "the probabilities are not the engine's"
    return ""


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
