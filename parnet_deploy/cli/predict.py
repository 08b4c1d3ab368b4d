"""``parnet-deploy predict``: what an engine sees in images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from parnet_deploy.bundle import EngineBundle, open_engine_bundle
from parnet_deploy.cli.console import print_json, say, tell, warn
from parnet_deploy.errors import ImageError, RunnerError
from parnet_deploy.images import find_images, load_image
from parnet_deploy.runtime.outputs import Guess
from parnet_deploy.spec import Array, Preprocessing

if TYPE_CHECKING:
    from parnet_deploy.runtime import Runner

EnginePath = Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine bundle.")]
ImagePaths = Annotated[
    list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
]
Top = Annotated[int, typer.Option("--top", help="How many labels to give per image.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What an engine sees in an image, the likeliest first."""

    image: str
    guesses: tuple[Guess, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """An image that could not be used."""

    image: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Loaded:
    """An image, ready to be run: (1, 3, H, W)."""

    path: Path
    pixels: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything, for programs."""

    engine: str
    predictions: tuple[Prediction, ...]
    problems: tuple[Problem, ...]


def command(engine: EnginePath, images: ImagePaths, top: Top = 5, as_json: AsJson = False) -> None:
    """Print the likeliest labels of images, with probabilities.

    An image that cannot be used is reported, the others are still answered, and the exit status is
    then 1.
    """
    from parnet_deploy.runtime import open_runner

    bundle = open_engine_bundle(engine)
    warn(bundle.manifest.warnings)
    predictions, problems = [], []
    with closing(open_runner(bundle)) as runner:
        for result in predict(bundle, runner, images, top):
            if isinstance(result, Problem):
                problems.append(result)
                tell(f"error: {result.error}")
                continue
            predictions.append(result)
            if not as_json:
                _print_prediction(result)
    if as_json:
        print_json(
            Report(engine=str(engine), predictions=tuple(predictions), problems=tuple(problems))
        )
    if problems:
        raise typer.Exit(1)


def predict(
    bundle: EngineBundle, runner: Runner, images: Sequence[Path], top: int
) -> Iterator[Prediction | Problem]:
    """Decode and run images, a batch at a time.

    Args:
        bundle: the engine.
        runner: what runs it.
        images: image files, and folders, which stand for all images in them.
        top: how many labels to give per image.

    Yields:
        For every image, in order, what was seen in it or why it could not be used.

    Raises:
        RunnerError: the run failed, or gave values that are not finite.
    """
    from parnet_deploy.runtime import run_batches
    from parnet_deploy.runtime.outputs import likeliest

    batch, preprocessing = bundle.manifest.batch, bundle.manifest.preprocessing
    labels = bundle.labels
    nothing = np.empty((0, bundle.manifest.spec.classes))
    found = [item for path in images for item in _expand(path)]
    for first in range(0, len(found), batch.max):
        loaded = [_load(item, preprocessing) for item in found[first : first + batch.max]]
        usable = [item.pixels for item in loaded if isinstance(item, Loaded)]
        rows = run_batches(runner, np.concatenate(usable), batch) if usable else nothing
        answers = iter(_probabilities(bundle, rows))
        for item in loaded:
            if isinstance(item, Loaded):
                guesses = likeliest(next(answers), labels, top)
                yield Prediction(image=str(item.path), guesses=guesses)
            else:
                yield item


def _probabilities(bundle: EngineBundle, rows: Array) -> Array:
    """What an engine gave, as probabilities; an error names the engine."""
    from parnet_deploy.runtime.outputs import probabilities

    try:
        return probabilities(rows, softmax=bundle.manifest.softmax)
    except RunnerError as exc:
        raise RunnerError(
            f"{bundle.path}: {exc}; 'parnet-deploy verify' says where they arise"
        ) from exc


def _expand(path: Path) -> list[Path | Problem]:
    """A file as it is; a folder as the images in it."""
    if not path.is_dir():
        return [path]
    try:
        return [*find_images(path)]
    except ImageError as exc:
        return [Problem(image=str(path), error=str(exc))]


def _load(item: Path | Problem, preprocessing: Preprocessing) -> Loaded | Problem:
    if isinstance(item, Problem):
        return item
    try:
        return Loaded(path=item, pixels=load_image(item, preprocessing))
    except ImageError as exc:
        return Problem(image=str(item), error=str(exc))


def _print_prediction(prediction: Prediction) -> None:
    lines = [prediction.image]
    lines += [f"  {guess.probability:7.2%}  {guess.label}" for guess in prediction.guesses]
    say("\n".join(lines))
