"""``parnet-deploy train``: images become a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parnet_deploy.bundle import CHECKPOINT
from parnet_deploy.cli.architecture import (
    ActivationName,
    Blocks,
    Depth,
    HasSqueeze,
    ImageSize,
    Streams,
    Widths,
    change_spec,
    find_spec,
    given,
)
from parnet_deploy.cli.checkpoint import origin
from parnet_deploy.cli.console import print_json, say, tell, warn
from parnet_deploy.cli.field_options import part_of, with_options_of
from parnet_deploy.cli.options import parse_size
from parnet_deploy.cli.packages import need
from parnet_deploy.cli.training_progress import training_progress
from parnet_deploy.data import save_images
from parnet_deploy.errors import TrainingError, UsageError
from parnet_deploy.spec import ParNetSpec
from parnet_deploy.train.qat_options import QatOptions, check_settings
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES, find_recipe
from parnet_deploy.train.settings import Settings

if TYPE_CHECKING:
    from parnet_deploy.data import DataSet
    from parnet_deploy.net import Checkpoint
    from parnet_deploy.train.metrics import Observer
    from parnet_deploy.train.processes import Processes
    from parnet_deploy.train.record import RunConfig, RunRecord

RUNS = Path("runs")
IMAGES = "images"

DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="imagefolder:PATH, cifar10:PATH, cifar100:PATH or digits [default: digits].",
    ),
]
HoldOut = Annotated[
    float | None,
    typer.Option(help="Part of each class to test on, where a folder has no test split."),
]
VariantName = Annotated[
    str | None,
    typer.Option("--variant", help="Network: see 'variants', or SPEC.json [default: digits]."),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe", help=f"How to train: {', '.join(RECIPES)} [default: quick; with --qat, qat]."
    ),
]
Output = Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/VARIANT].")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N [default: a GPU where there is one].")
]
FineTune = Annotated[
    Path | None,
    typer.Option(
        "--finetune", "--checkpoint", help="Begin with a checkpoint, ours or the authors'."
    ),
]
QatName = Annotated[
    str | None,
    typer.Option(
        "--qat", metavar="int8|fp8", help="Train a checkpoint to be deployed in that precision."
    ),
]
QatFor = Annotated[
    str | None,
    typer.Option(
        "--qat-for",
        metavar="BACKEND",
        help="Whose int8 or fp8: which activations are quantised, and how [default: tensorrt].",
    ),
]
QatObserve = Annotated[
    float | None,
    typer.Option(
        "--qat-observe",
        metavar="PART",
        help="Part of the training in which activations' ranges move [default: 0.5].",
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(help="Go on with the run in this folder; all else is as it was begun."),
]
ExportTestImages = Annotated[
    bool,
    typer.Option("--export-test-images", help="Write the test split too: images/LABEL/NNNN.png."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print what would be trained and how, and end.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a run that stands there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What is given out at the end: the test split as images, JSON in place of words."""

    images: bool
    as_json: bool


@with_options_of(Recipe, Settings)
def command(
    variant: VariantName = None,
    data: DataName = None,
    recipe: RecipeName = None,
    output: Output = None,
    finetune: FineTune = None,
    qat: QatName = None,
    qat_for: QatFor = None,
    qat_observe: QatObserve = None,
    resume: Resume = None,
    hold_out: HoldOut = None,
    device: Device = None,
    image_size: ImageSize = None,
    streams: Streams = None,
    depth: Depth = None,
    widths: Widths = None,
    blocks: Blocks = None,
    activation: ActivationName = None,
    squeeze: HasSqueeze = None,
    export_test_images: ExportTestImages = False,
    print_config: PrintConfig = False,
    force: Force = False,
    as_json: AsJson = False,
    **changes: Any,
) -> None:
    """Train a ParNet on images, test it after every epoch, and keep the last and the best.

    In several processes: torchrun --nproc-per-node N -m parnet_deploy train ...
    """
    network = given(streams=streams, depth=depth, widths=widths, blocks=blocks)
    network |= given(activation=activation, squeeze=squeeze, image_size=image_size)
    named = given(variant=variant, data=data, recipe=recipe, output=output, finetune=finetune)
    named |= given(hold_out=hold_out, force=force or None, print_config=print_config or None)
    quantised = given(qat=qat, qat_for=qat_for, qat_observe=qat_observe)
    need("train")
    shown = Shown(images=export_test_images, as_json=as_json)
    if resume is not None:
        _refuse_others(named | quantised | network | changes)
        _resume(resume, device, shown)
        return
    settings = Settings(**part_of(changes, Settings))
    qat_options = _find_qat(quantised, finetune, settings)
    usual = "qat" if qat_options else "quick"
    chosen = find_recipe(recipe or usual).changed(**part_of(changes, Recipe))
    found = None if finetune is None else _read(finetune, given(variant=variant) | network)
    spec = found.model.spec if found else change_spec(find_spec(variant or "digits"), **network)
    opened = _open(data or "digits", hold_out, settings)
    if found is not None:
        found = _fit(found, opened, settings.seed, qat_options)
    config = _configure(spec, found, opened, chosen, settings, hold_out, qat_options)
    if print_config:
        print_json(config)
        return
    _warn_of_idle(chosen, changes)
    _begin(output or RUNS / config.spec.name, config, opened, device, found, shown, force=force)


def _begin(
    folder: Path,
    config: RunConfig,
    data: DataSet,
    device: str | None,
    start: Checkpoint | None,
    shown: Shown,
    *,
    force: bool,
) -> None:
    from parnet_deploy.train.run import begin_run

    with _sharing(device, folder) as (processes, observer):
        record = begin_run(
            folder,
            config,
            data,
            processes,
            observer,
            model=start.model if start else None,
            force=force,
        )
        if processes.is_main:
            _finish(folder, record, data, shown)


def _resume(folder: Path, device: str | None, shown: Shown) -> None:
    from parnet_deploy.train.record import read_run
    from parnet_deploy.train.run import resume_run

    config = read_run(folder).config
    opened = _open(config.data, config.hold_out, config.settings)
    with _sharing(device, folder) as (processes, observer):
        record = resume_run(folder, opened, processes, observer)
        if processes.is_main:
            _finish(folder, record, opened, shown)


def _refuse_others(others: Mapping[str, Any]) -> None:
    """With --resume, whatever else decides what is learnt."""
    if others:
        options = ", ".join("--" + name.replace("_", "-") for name in others)
        raise UsageError(
            f"--resume goes on with a run as it was begun; leave away {options} "
            "(--device may be given)"
        )


def _warn_of_idle(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    """Say so where an option was given that changes nothing."""
    warn(
        f"--{name.replace('_', '-')} changes nothing: {why}"
        for name, why in recipe.idle().items()
        if name in changes
    )
    if recipe.schedule == "step" and not recipe.decay_at:
        warn(["a schedule of steps without --decay-at: the learning rate stays as it is"])


def _read(path: Path, changes: dict[str, Any]) -> Checkpoint:
    """The checkpoint to fine-tune, of which only size and activation can be said."""
    if extra := [name for name in changes if name not in ("image_size", "activation")]:
        raise UsageError(
            f"--finetune takes the checkpoint's network; leave away --{extra[0].replace('_', '-')}"
        )
    from parnet_deploy.net import load_checkpoint

    size = changes.get("image_size")
    return load_checkpoint(
        path,
        activation=changes.get("activation"),
        image_size=None if size is None else parse_size(size),
    )


def _find_qat(
    given_options: Mapping[str, Any], checkpoint: Path | None, settings: Settings
) -> QatOptions | None:
    """What the network is trained to be quantised to.

    Raises:
        UsageError: it cannot be; or something is given that belongs to it, or is missing.
    """
    if not given_options:
        return None
    if "qat" not in given_options:
        extra = next(iter(given_options)).replace("_", "-")
        raise UsageError(f"--{extra} belongs to --qat int8 or --qat fp8")
    names = {"qat": "precision", "qat_for": "target", "qat_observe": "observe"}
    options = QatOptions(**{names[name]: value for name, value in given_options.items()})
    check_settings(settings)
    if checkpoint is None:
        raise UsageError(
            "--qat refines a network that has been trained; name its weights with --checkpoint"
        )
    return options


def _fit(found: Checkpoint, data: DataSet, seed: int, qat: QatOptions | None) -> Checkpoint:
    """The weights to begin with, with a classifier for the data's classes."""
    from parnet_deploy.net import with_classes

    fitted = with_classes(found, data.labels, seed=seed)
    if qat is not None and fitted.new_head:
        raise UsageError(
            f"--qat keeps the checkpoint's classifier, and the classes of {data.name} are other "
            "ones; train with --finetune alone first"
        )
    kept = "a new classifier" if fitted.new_head else "its classifier, too"
    tell(f"  fine-tune: {origin(fitted.source)}, {kept}")
    return fitted


def _configure(
    spec: ParNetSpec,
    start: Checkpoint | None,
    data: DataSet,
    recipe: Recipe,
    settings: Settings,
    hold_out: float | None,
    qat: QatOptions | None,
) -> RunConfig:
    from parnet_deploy.train.record import configure

    source = start.source if start else None
    return configure(spec, data, recipe, settings, hold_out=hold_out, start=source, qat=qat)


def _open(source: str, hold_out: float | None, settings: Settings) -> DataSet:
    from parnet_deploy.data import open_data

    return open_data(source, hold_out=hold_out, skip_bad=settings.skip_bad)


@contextmanager
def _sharing(device: str | None, folder: Path) -> Iterator[tuple[Processes, Observer]]:
    """This process among those of the training; only the main one tells people."""
    from parnet_deploy.train.logs import Observers
    from parnet_deploy.train.processes import joined
    from parnet_deploy.train.run import STATE

    with joined(device) as processes:
        try:
            yield processes, training_progress() if processes.is_main else Observers()
        except (KeyboardInterrupt, SystemExit):
            if processes.is_main and (folder / STATE).exists():
                where = shlex.quote(str(folder))
                alone = processes.count == 1
                program = "parnet-deploy" if alone else "torchrun ... -m parnet_deploy"
                tell(f"stopped; go on with: {program} train --resume {where}")
            raise


def _finish(folder: Path, record: RunRecord, data: DataSet, shown: Shown) -> None:
    """Say what came of a training."""
    if record.result is None:
        raise TrainingError(f"the training in {folder} was stopped before its end")
    if shown.images:
        save_images(data.test, data.labels, folder / IMAGES)
    if shown.as_json:
        print_json(record)
        return
    config, result = record.config, record.result
    epochs = config.recipe.epochs
    say(
        f"{folder}: {config.spec.name}, {result.parameters:,} parameters, {epochs} "
        f"epoch{'s' * (epochs != 1)} in {result.seconds:.0f} s"
    )
    tested = result.last.test_images
    right = round(result.last.test_top1 * tested)
    say(
        f"right on the test split: {right} of {tested} ({result.last.test_top1:.2%}); "
        f"best after epoch {result.best.epoch}: {result.best.test_top1:.2%}"
    )
    if result.failed:
        say(f"skipped: {len(result.failed)} images that could not be decoded, listed in run.json")
    say(f"next: parnet-deploy export --checkpoint {shlex.quote(str(folder / CHECKPOINT))}")
