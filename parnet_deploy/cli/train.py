"""``parnet-deploy train``: images become a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parnet_deploy.bundle import Source
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
from parnet_deploy.cli.console import print_json, say, tell
from parnet_deploy.cli.options import parse_size
from parnet_deploy.cli.packages import need
from parnet_deploy.cli.recipe_options import with_recipe_options
from parnet_deploy.cli.training_progress import training_progress
from parnet_deploy.data import save_images
from parnet_deploy.errors import TrainingError, UsageError
from parnet_deploy.spec import ParNetSpec
from parnet_deploy.train.recipe import Recipe
from parnet_deploy.train.recipes import RECIPES, find_recipe
from parnet_deploy.train.settings import Precision, Settings

if TYPE_CHECKING:
    from parnet_deploy.data import DataSet
    from parnet_deploy.net import ParNet
    from parnet_deploy.train.metrics import Observer
    from parnet_deploy.train.processes import Processes
    from parnet_deploy.train.run import RunRecord

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
    typer.Option("--recipe", help=f"How to train: {', '.join(RECIPES)} [default: quick]."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random [default: 0].")]
Output = Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/VARIANT].")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N [default: a GPU where there is one].")
]
PrecisionName = Annotated[
    Precision | None,
    typer.Option(help="Of the operators that bear it; fp16 scales the loss [default: fp32]."),
]
ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        "--channels-last/--no-channels-last", help="Memory layout [default: channels last]."
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(help="Images a process takes at once; gradients add up to the batch."),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes that decode images [default: by the cores].")
]
SyncBn = Annotated[
    bool | None,
    typer.Option("--sync-bn", help="Batch normalisation over all processes' images."),
]
Deterministic = Annotated[
    bool | None, typer.Option("--deterministic", help="On a GPU: the same bits every time.")
]
SaveEvery = Annotated[
    int | None,
    typer.Option(help="Steps between two states to resume from, beside every epoch's end."),
]
SkipBad = Annotated[
    bool | None,
    typer.Option("--skip-bad", help="Go on without images that cannot be decoded; count them."),
]
FineTune = Annotated[
    Path | None,
    typer.Option("--finetune", help="Begin with a checkpoint, ours or the authors'."),
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
class Start:
    """The network to begin with, and the checkpoint it is from; None for a new one."""

    spec: ParNetSpec
    model: ParNet | None = None
    source: Source | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedTraining:
    """What ``--print-config`` prints."""

    spec: ParNetSpec
    data: str
    recipe: Recipe
    settings: Settings


@with_recipe_options
def command(
    variant: VariantName = None,
    data: DataName = None,
    recipe: RecipeName = None,
    output: Output = None,
    seed: Seed = None,
    finetune: FineTune = None,
    resume: Resume = None,
    hold_out: HoldOut = None,
    skip_bad: SkipBad = None,
    device: Device = None,
    precision: PrecisionName = None,
    channels_last: ChannelsLast = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    sync_bn: SyncBn = None,
    deterministic: Deterministic = None,
    save_every: SaveEvery = None,
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
    network = given(
        streams=streams,
        depth=depth,
        widths=widths,
        blocks=blocks,
        activation=activation,
        squeeze=squeeze,
        image_size=image_size,
    )
    carried_out = given(
        seed=seed,
        precision=precision,
        channels_last=channels_last,
        micro_batch=micro_batch,
        workers=workers,
        sync_bn=sync_bn,
        deterministic=deterministic,
        save_every=save_every,
        skip_bad=skip_bad,
    )
    named = given(variant=variant, data=data, recipe=recipe, output=output, finetune=finetune)
    need("train")
    if resume is not None:
        others = named | network | carried_out | changes | given(hold_out=hold_out)
        _refuse_others(others, force=force, print_config=print_config)
        _resume(resume, device, export_test_images=export_test_images, as_json=as_json)
        return
    chosen = find_recipe(recipe or "quick").changed(**changes)
    settings = Settings(**carried_out)
    start = _start(variant, finetune, network)
    source = data or "digits"
    if print_config:
        print_json(PlannedTraining(spec=start.spec, data=source, recipe=chosen, settings=settings))
        return
    from parnet_deploy.train import run

    opened = _open(source, hold_out, settings)
    start = _fit(start, finetune, opened, settings.seed)
    config = run.configure(
        start.spec, opened, chosen, settings, hold_out=hold_out, start=start.source
    )
    folder = output or RUNS / config.spec.name
    with _sharing(device, folder) as (processes, observer):
        record = run.begin_run(
            folder, config, opened, processes, observer, model=start.model, force=force
        )
        if processes.is_main:
            _finish(folder, record, opened, images=export_test_images, as_json=as_json)


def _resume(folder: Path, device: str | None, *, export_test_images: bool, as_json: bool) -> None:
    from parnet_deploy.train import run

    config = run.read_run(folder).config
    opened = _open(config.data, config.hold_out, config.settings)
    with _sharing(device, folder) as (processes, observer):
        record = run.resume_run(folder, opened, processes, observer)
        if processes.is_main:
            _finish(folder, record, opened, images=export_test_images, as_json=as_json)


def _refuse_others(others: Mapping[str, Any], *, force: bool, print_config: bool) -> None:
    """With --resume, whatever else decides what is learnt."""
    names = [*others, *(["force"] if force else []), *(["print_config"] if print_config else [])]
    if names:
        options = ", ".join("--" + name.replace("_", "-") for name in names)
        raise UsageError(
            f"--resume goes on with a run as it was begun; leave away {options} "
            "(--device may be given)"
        )


def _start(variant: str | None, finetune: Path | None, network: dict[str, Any]) -> Start:
    """The network as it is asked for; its number of classes is the data's, later."""
    if finetune is None:
        return Start(spec=change_spec(find_spec(variant or "digits"), **network))
    if extra := [name for name in network if name not in ("image_size", "activation")]:
        raise UsageError(
            f"--finetune takes the checkpoint's network; leave away --{extra[0].replace('_', '-')}"
        )
    from parnet_deploy.net import load_checkpoint

    size = network.get("image_size")
    found = load_checkpoint(
        finetune,
        activation=network.get("activation"),
        expected=None if variant is None else find_spec(variant),
        image_size=None if size is None else parse_size(size),
    )
    return Start(spec=found.model.spec, source=found.source)


def _fit(start: Start, finetune: Path | None, data: DataSet, seed: int) -> Start:
    """Give a network that is fine-tuned the data's classes."""
    if finetune is None:
        return start
    from parnet_deploy.net import load_for_finetuning

    found = load_for_finetuning(
        finetune,
        classes=len(data.labels),
        image_size=start.spec.image_size,
        seed=seed,
        activation=start.spec.activation,
    )
    return Start(spec=found.model.spec, model=found.model, source=found.source)


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
                tell(f"stopped; go on with: parnet-deploy train --resume {where}")
            raise


def _finish(folder: Path, record: RunRecord, data: DataSet, *, images: bool, as_json: bool) -> None:
    """Say what came of a training."""
    if record.result is None:
        raise TrainingError(f"the training in {folder} was stopped before its end")
    if images:
        save_images(data.test, data.labels, folder / IMAGES)
    if as_json:
        print_json(record)
        return
    config, result = record.config, record.result
    epochs = config.recipe.epochs
    say(
        f"{folder}: {config.spec.name}, {result.parameters:,} parameters, {epochs} "
        f"epoch{'s' * (epochs != 1)} in {result.seconds:.0f} s"
    )
    right = round(result.last.test_top1 * config.test_images)
    say(
        f"right on the test split: {right} of {config.test_images} ({result.last.test_top1:.2%}); "
        f"best after epoch {result.best.epoch}: {result.best.test_top1:.2%}"
    )
    if result.failed:
        say(f"skipped: {len(result.failed)} images that could not be decoded, listed in run.json")
    from parnet_deploy.train.run import CHECKPOINT

    say(f"next: parnet-deploy export --checkpoint {shlex.quote(str(folder / CHECKPOINT))}")
