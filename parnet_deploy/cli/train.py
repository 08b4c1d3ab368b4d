"""``parnet-deploy train``: images become a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from parnet_deploy.cli.console import errors, print_json, say, tell
from parnet_deploy.errors import MissingDependencyError
from parnet_deploy.spec import variant as find_variant

if TYPE_CHECKING:
    from parnet_deploy.train import EpochMetrics, RunSummary

RUNS = Path("runs")

DataName = Annotated[str, typer.Option("--data", help="Data set: digits.")]
VariantName = Annotated[str, typer.Option("--variant", help="Network; see 'variants'.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="How to train: quick.")]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Passes, instead of the recipe's own.", min=1)
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]
Output = Annotated[Path | None, typer.Option(help="Folder of the run; without it, runs/VARIANT.")]
ExportTestImages = Annotated[
    bool,
    typer.Option("--export-test-images", help="Write the test split too: images/LABEL/NNNN.png."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a run that stands there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def command(
    data: DataName = "digits",
    variant: VariantName = "digits",
    recipe: RecipeName = "quick",
    epochs: Epochs = None,
    seed: Seed = 0,
    output: Output = None,
    export_test_images: ExportTestImages = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a ParNet on images, and count what it gets right on images it has never seen."""
    spec = find_variant(variant).spec
    try:
        from parnet_deploy.train import find_recipe, load_data, train_run
    except ImportError as exc:
        raise MissingDependencyError(
            f"training needs {exc.name}, which is not installed: pip install 'parnet-deploy[train]'"
        ) from exc
    chosen = find_recipe(recipe)
    if epochs is not None:
        chosen = replace(chosen, epochs=epochs)
    final = output or RUNS / spec.name
    with _reporting(chosen.epochs) as report:
        summary = train_run(
            final,
            spec,
            load_data(data, spec.image_size),
            chosen,
            seed=seed,
            export_test_images=export_test_images,
            force=force,
            progress=report,
        )
    if as_json:
        print_json(summary)
    else:
        _print_summary(final, summary)


@contextmanager
def _reporting(epochs: int) -> Iterator[Callable[[EpochMetrics], None]]:
    """A progress bar on a terminal, a line per epoch elsewhere."""
    if not errors.is_terminal:
        yield lambda metrics: tell(f"  epoch {metrics.epoch}/{epochs}: {_describe(metrics)}")
        return
    columns = (
        TextColumn("  training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as bar:
        task = bar.add_task("epochs", total=epochs)
        yield lambda metrics: bar.update(task, advance=1, description=_describe(metrics))


def _describe(metrics: EpochMetrics) -> str:
    return f"loss {metrics.loss:.3f}, {metrics.accuracy:.1%} of the training images right"


def _print_summary(final: Path, summary: RunSummary) -> None:
    from parnet_deploy.train.run import CHECKPOINT

    checkpoint = shlex.quote(str(final / CHECKPOINT))
    right = f"{summary.test_correct} of {summary.test_images} ({summary.test_accuracy:.2%})"
    epochs = summary.recipe.epochs
    done = f"{epochs} epoch{'s' * (epochs != 1)} in {summary.seconds:.0f} s"
    say(f"{final}: {summary.spec.name}, {summary.parameters:,} parameters, {done}")
    say(f"right on the test split: {right}")
    say(f"next: parnet-deploy export --checkpoint {checkpoint}")
