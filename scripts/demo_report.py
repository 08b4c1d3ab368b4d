"""Do all forms of a network get the same images right? The table at the end of the demo.

Runs the training form, the fused form, the ONNX graph, the whole engine and the split engine on a
folder of images, ``LABEL/*.png``, and fails unless all of them get the same images right, to the
last one, and enough of them.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from parnet_deploy.bundle import MODEL_GRAPH, ModelBundle, open_engine_bundle, open_model
from parnet_deploy.cli.console import console, new_table, print_table
from parnet_deploy.errors import ParnetDeployError, VerificationError
from parnet_deploy.images import find_images, load_images
from parnet_deploy.net import BlockGraph, fuse, load_checkpoint
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner, open_runner, run_batches
from parnet_deploy.spec import LOGITS, Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """What one form of the network answered.

    Attributes:
        form: its name.
        logits: (N, classes).
    """

    form: str
    logits: Array

    def right(self, truth: Array) -> Array:
        """(N,) bool: whether each image was recognised, `truth` (N,) being the classes' indices."""
        right: Array = self.logits.argmax(axis=1) == truth
        return right


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 when the forms differ or too few answers are right."""
    options = parse(arguments)
    try:
        truth, answers = collect(options)
    except ParnetDeployError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print_answers(answers, truth)
    problems = judge(answers, truth, minimum=options.minimum / 100)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        console.print(f"The same {answers[0].right(truth).sum()} images are right in every form.")
    return 1 if problems else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="model bundle")
    parser.add_argument("--whole", type=Path, required=True, help="engine bundle")
    parser.add_argument("--split", type=Path, required=True, help="engine bundle, a stage each")
    parser.add_argument("--images", type=Path, required=True, help="folder of LABEL/*.png")
    parser.add_argument("--minimum", type=float, default=97.0, help="percent that must be right")
    return parser.parse_args(arguments)


def collect(options: argparse.Namespace) -> tuple[Array, tuple[Answers, ...]]:
    """The images' true classes (N,), and what every form answers.

    Raises:
        ParnetDeployError: something cannot be read or run.
    """
    model = open_model(options.model)
    paths = find_images(options.images)
    truth = true_classes(paths, model.labels)
    answers = tuple(
        Answers(form=form, logits=logits) for form, logits in run_forms(options, model, paths)
    )
    return truth, answers


def true_classes(paths: Sequence[Path], labels: Sequence[str]) -> Array:
    """(N,) indices of the labels that the images' folders are named after.

    Raises:
        VerificationError: a folder has another name.
    """
    index = {label: number for number, label in enumerate(labels)}
    if strange := sorted({path.parent.name for path in paths} - index.keys()):
        raise VerificationError(f"{strange} are not labels; the labels are {', '.join(labels)}")
    return np.array([index[path.parent.name] for path in paths])


def run_forms(
    options: argparse.Namespace, model: ModelBundle, paths: Sequence[Path]
) -> Iterator[tuple[str, Array]]:
    """Every form's name and its logits (N, classes)."""
    manifest = model.manifest
    trained = load_checkpoint(options.checkpoint).model
    images = load_images(paths, replace(manifest.preprocessing, in_graph=False))
    yield "training form (torch)", run_torch(trained, images)
    yield "fused form (torch)", run_torch(fuse(trained, manifest.form), images)
    images = load_images(paths, manifest.preprocessing)
    graph = OnnxRuntimeRunner(
        model.file(MODEL_GRAPH), inputs=manifest.inputs, outputs=manifest.outputs
    )
    yield "ONNX graph (ONNX Runtime)", run_and_close(graph, images, model)
    for kind, path in (("whole", options.whole), ("split", options.split)):
        engine = open_engine_bundle(path)
        parts = f"{len(engine.manifest.stages)} stages" if kind == "split" else "1 graph"
        form = f"{kind} engine ({engine.manifest.backend}, {parts})"
        yield form, run_and_close(open_runner(engine), images, model)


def run_torch(network: BlockGraph, images: Array, batch: int = 64) -> Array:
    """(N, 3, H, W) -> (N, classes)."""
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(images[first : first + batch])).numpy()
            for first in range(0, len(images), batch)
        ]
    return np.concatenate(parts)


def run_and_close(runner: Runner, images: Array, model: ModelBundle) -> Array:
    """(N, 3, H, W) -> (N, classes).

    Raises:
        VerificationError: the runner does not give logits.
    """
    with closing(runner):
        if [spec.name for spec in runner.outputs] != [LOGITS]:
            raise VerificationError("logits are compared, and the network was exported without")
        return run_batches(runner, images, model.manifest.batch)


def judge(answers: Sequence[Answers], truth: Array, *, minimum: float) -> list[str]:
    """What is wrong, in sentences; none when all is well.

    Args:
        answers: of every form, the one that the others must equal first.
        truth: (N,) true classes.
        minimum: part of the images that must be right.
    """
    problems = []
    first = answers[0]
    for other in answers:
        if not np.isfinite(other.logits).all():
            problems.append(f"the {other.form} gives values that are not finite")
        differ = int((other.right(truth) != first.right(truth)).sum())
        if differ:
            problems.append(
                f"the {other.form} and the {first.form} do not get the same images right: "
                f"they differ on {differ} of {len(truth)}"
            )
        accuracy = float(other.right(truth).mean())
        if not accuracy >= minimum:
            problems.append(f"the {other.form} gets {accuracy:.2%} right, less than {minimum:.0%}")
    return problems


def greatest_difference(answers: Sequence[Answers]) -> float:
    """The greatest absolute difference of a logit between any two forms."""
    return max(
        (float(np.abs(a.logits - b.logits).max()) for a, b in itertools.combinations(answers, 2)),
        default=0.0,
    )


def print_answers(answers: Sequence[Answers], truth: Array) -> None:
    """Print a row for every form."""
    first = answers[0]
    table = new_table(
        f"{len(truth)} held-out images",
        {"form": "left", "right": "right", "accuracy": "right", "logits differ by": "right"},
    )
    for other in answers:
        right = other.right(truth)
        table.add_row(
            other.form,
            str(int(right.sum())),
            f"{right.mean():.2%}",
            "" if other is first else f"{greatest_difference((first, other)):.1e}",
        )
    print_table(table)
    console.print(
        f"Greatest difference of a logit between any two forms: {greatest_difference(answers):.1e} "
        f"(logits reach {np.abs(first.logits).max():.1f})",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
