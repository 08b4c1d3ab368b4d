"""What is asked of a Triton with repositories of ours, and what it has to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as httpclient
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from parnet_deploy.bundle import EngineBundle
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import Array

CLIENTS = 8
REQUESTS = 25
"""Requests of one client, at most a few hundred in all."""

PAUSE = 0.05
"""Seconds that a stage takes longer while it is looked at whether streams run side by side."""

TOLERANCE = 1e-4
"""Of the largest logit: two versions of ONNX Runtime add in another order."""

SECONDS = 60.0
"""For one answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A repository and the engine it was written of.

    Attributes:
        name: what clients ask for.
        engine: the engine.
        repository: where it was written.
    """

    name: str
    engine: EngineBundle
    repository: Path

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of what runs."""
        stages = self.engine.manifest.stages
        split = self.engine.manifest.split
        return tuple(f"{self.name}-{stage.name}" if split else self.name for stage in stages)

    def images(self, count: int, seed: int) -> Array:
        """Images of noise, (count, 3, H, W)."""
        (spec,) = self.engine.manifest.inputs
        noise = np.random.default_rng(seed).standard_normal((count, *map(int, spec.shape[1:])))
        return noise.astype(spec.dtype)


class CheckError(Exception):
    """What Triton did is not what should be: one sentence."""


def checks(client: Any, address: str, served: Served, notes: Path) -> Iterator[tuple[str, str]]:
    """All checks of one repository: what was checked, and what was found."""
    yield "its configurations are what was written", check_configs(client, served)
    yield "answers equal the engine's", check_answers(client, served)
    yield "classes and labels", check_classes(client, served)
    yield "what does not fit is refused", check_refusals(client, served)
    before = {name: len(runs(notes, name)) for name in served.stages}  # the warm-up's, too
    yield f"{CLIENTS} clients at once", check_clients(address, served)
    if served.engine.manifest.batch.dynamic:
        yield "requests were put together", check_batches(served, notes, before)
    if served.engine.manifest.split:
        yield "streams ran side by side", check_overlap(client, served, notes)


def check_fault(client: Any, faulty: Served) -> str:
    """The comparison can fail: it does with the planted fault."""
    try:
        check_answers(client, faulty)
    except CheckError as exc:
        return str(exc)
    raise CheckError("a repository with swapped cuts passed the comparison")


def check_index(client: Any, served: Sequence[Served]) -> str:
    """Triton lists the models that were written, all ready; it took no file for a model."""
    index = {entry["name"]: entry.get("state") for entry in client.get_model_repository_index()}
    wanted = {name: "READY" for each in served for name in (*each.stages, each.name)}
    if index != wanted:
        raise CheckError(f"Triton lists {index}, and {wanted} was written")
    return f"{len(index)} models"


def check_configs(client: Any, served: Served) -> str:
    """Every field that was written is in force; Triton fills in others."""
    for name in dict.fromkeys((*served.stages, served.name)):
        text = (served.repository / name / "config.pbtxt").read_text(encoding="ascii")
        written = json_format.MessageToDict(text_format.Parse(text, pb.ModelConfig()))
        answered = json_format.ParseDict(client.get_model_config(name), pb.ModelConfig())
        found = json_format.MessageToDict(answered)
        if written["platform"] != "ensemble":
            written.pop("platform")
        if lost := list(lost_fields(written, found)):
            raise CheckError(f"Triton's configuration of '{name}' differs in {', '.join(lost)}")
    return ""


def lost_fields(written: Any, found: Any, path: str = "") -> Iterator[str]:
    """Places where something that was written is not found."""
    if isinstance(written, Mapping) and isinstance(found, Mapping):
        for key, value in written.items():
            yield from lost_fields(value, found.get(key), f"{path}.{key}".strip("."))
    elif isinstance(written, list) and isinstance(found, list) and len(written) == len(found):
        for number, (one, other) in enumerate(zip(written, found, strict=True)):
            yield from lost_fields(one, other, f"{path}[{number}]")
    elif written != found:
        yield f"{path} ({written} was written, {found} found)"


def ask(client: Any, served: Served, images: Array, *, classes: int = 0) -> Array:
    """What Triton answers to images."""
    given = httpclient.InferInput("images", images.shape, np_to_triton_dtype(images.dtype))
    given.set_data_from_numpy(images)
    wanted = httpclient.InferRequestedOutput("logits", class_count=classes)
    answer = client.infer(served.name, [given], outputs=[wanted], model_version="1")
    result: Array = answer.as_numpy("logits")
    return result


def batches(served: Served) -> list[int]:
    """Batch sizes that the engine takes."""
    batch = served.engine.manifest.batch
    return list(range(batch.min, batch.max + 1))


def compare(found: Array, expected: Array) -> float:
    """The largest difference, relative to the largest logit.

    Raises:
        CheckError: shape or type differ, a number is not finite, or it is beyond the tolerance.
    """
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise CheckError(f"an answer is {found.dtype}{found.shape}, not {expected.shape}")
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise CheckError(f"an answer differs by {difference:.1e} of the largest logit")
    return difference


def check_answers(client: Any, served: Served) -> str:
    """Every batch size, other images each, against the engine's own runner."""
    worst = 0.0
    with open_runner(served.engine) as runner:
        for batch in batches(served):
            images = served.images(batch, seed=batch)
            expected = runner.run({"images": images})["logits"]
            worst = max(worst, compare(ask(client, served, images), expected))
            others = runner.run({"images": served.images(batch, seed=1000 + batch)})["logits"]
            refuse_equal(others, expected)
    return f"within {worst:.1e}"


def refuse_equal(one: Array, other: Array) -> None:
    """Other images have other answers, or the comparison would mean nothing."""
    try:
        compare(one, other)
    except CheckError:
        return
    raise CheckError("two different images have the same answer: comparing means nothing")


def check_classes(client: Any, served: Served) -> str:
    """Triton's classification gives the likeliest classes with their labels."""
    images = served.images(served.engine.manifest.batch.max, seed=77)
    with open_runner(served.engine) as runner:
        expected = runner.run({"images": images})["logits"]
    found = ask(client, served, images, classes=2).reshape(len(images), 2)
    for row, entries in zip(expected, found, strict=True):
        order = np.argsort(-row)[:2]
        for index, entry in zip(order, entries, strict=True):
            score, number, label = entry.decode().split(":")
            if int(number) != index or label != served.engine.labels[index]:
                raise CheckError(f"'{entry.decode()}' was given for class {index}")
            compare(np.array([float(score)]), np.array([float(row[index])]))
    return f"such as {found[0][0].decode()}"


def check_refusals(client: Any, served: Served) -> str:
    """A batch too many, another shape and an unknown output are refused, and Triton goes on."""
    most = served.engine.manifest.batch.max
    wrong = {"a batch": served.images(most + 1, seed=0), "a shape": served.images(1, 0)[..., :-1]}
    for what, images in wrong.items():
        try:
            ask(client, served, np.ascontiguousarray(images))
        except InferenceServerException:
            continue
        raise CheckError(f"{what} that does not fit was answered")
    check_answers(client, served)
    return ""


def check_clients(address: str, served: Served) -> str:
    """Several clients at once: each gets the answers to its own images."""
    most = min(served.engine.manifest.batch.max, 3)
    with open_runner(served.engine) as runner, ThreadPoolExecutor(CLIENTS) as pool:

        def ask_often(number: int) -> float:
            worst = 0.0
            with httpclient.InferenceServerClient(address, network_timeout=SECONDS) as client:
                for turn in range(REQUESTS):
                    images = served.images(1 + turn % most, seed=1000 * (number + 1) + turn)
                    expected = runner.run({"images": images})["logits"]
                    worst = max(worst, compare(ask(client, served, images), expected))
            return worst

        worst = max(pool.map(ask_often, range(CLIENTS)))
    return f"{CLIENTS * REQUESTS} answers within {worst:.1e}"


def runs(notes: Path, model: str) -> list[dict[str, Any]]:
    """What a model's stand-in noted of its runs."""
    lines = [
        line
        for path in sorted(notes.glob(f"{model}-[0-9]*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def check_batches(served: Served, notes: Path, before: Mapping[str, int]) -> str:
    """Triton's batcher put clients' requests together, and never more images than may be.

    Args:
        served: what was asked.
        notes: where its stand-ins noted their runs.
        before: how many runs of each model to leave out.
    """
    most = served.engine.manifest.batch.max
    together = []
    for model in served.stages:
        noted = [run["batches"] for run in runs(notes, model)[before[model] :]]
        if sum(map(len, noted)) != CLIENTS * REQUESTS:
            raise CheckError(f"'{model}' ran {sum(map(len, noted))} requests")
        if (largest := max(map(sum, noted))) > most:
            raise CheckError(f"'{model}' was given a batch of {largest}, more than {most}")
        together.append(max(map(len, noted)))
    if min(together) < 2:
        raise CheckError(f"no two requests were put together for one of {served.stages}")
    return f"up to {max(together)} at once"


def check_overlap(client: Any, served: Served, notes: Path) -> str:
    """While every stage takes longer: all streams of one request are under way at one moment."""
    streams = [name for name in served.stages if "stream" in name]
    before = {name: len(runs(notes, name)) for name in streams}
    pause = notes / "pause"
    pause.write_text(str(PAUSE))
    try:
        ask(client, served, served.images(1, seed=5))
    finally:
        pause.unlink()
    last = {name: runs(notes, name)[-1] for name in streams}
    for name in streams:
        if len(runs(notes, name)) != before[name] + 1:
            raise CheckError(f"one request ran '{name}' more than once, or not at all")
    for one, other in combinations(streams, 2):
        if last[one]["end"] <= last[other]["begin"] or last[other]["end"] <= last[one]["begin"]:
            raise CheckError(f"'{one}' and '{other}' ran one after the other")
    return f"{len(streams)} of them"
