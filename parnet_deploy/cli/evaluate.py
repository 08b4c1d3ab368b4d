"""``parnet-deploy evaluate``: what a network gets right of labelled images, in whatever form."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parnet_deploy.bundle import CHECKPOINT, MANIFEST, BatchRange, staged
from parnet_deploy.cli.architecture import ActivationName
from parnet_deploy.cli.checkpoint import labels_of, preprocessing_of
from parnet_deploy.cli.console import print_json, tell, warn
from parnet_deploy.cli.evaluation import print_evaluation, reporting
from parnet_deploy.cli.options import parse_size
from parnet_deploy.data import Part, Split
from parnet_deploy.errors import BundleError, MissingDependencyError, SpecError, UsageError
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.spec import Activation, Preprocessing, decode

if TYPE_CHECKING:
    from parnet_deploy.evaluate import Evaluation, Options, Subject

BATCH = 32
"""Images per run of a checkpoint, which takes any number."""

MOST_THREADS = 8

Precision = Literal["fp32"]

SubjectPath = Annotated[
    Path,
    typer.Argument(
        metavar="NETWORK",
        help="Checkpoint (ours or the authors'), a run's folder, model bundle or engine bundle.",
    ),
]
Source = Annotated[
    str,
    typer.Option(
        "--data", help="imagefolder:PATH, cifar10:PATH, cifar100:PATH or digits.", metavar="SOURCE"
    ),
]
SplitName = Annotated[Part, typer.Option("--split", help="Which split of it.")]
HoldOut = Annotated[
    float | None,
    typer.Option(help="Part of every class that is the test split, as it was in training."),
]
TenCrop = Annotated[
    bool,
    typer.Option(
        "--ten-crop", help="Corners, centre and their mirror images; probabilities are averaged."
    ),
]
CropRatio = Annotated[
    float | None, typer.Option(help="Crop by resized image, instead of the network's own: 0.875.")
]
ImageSize = Annotated[
    str | None, typer.Option(help="Input size in pixels, for a checkpoint: 224 or HxW.")
]
Batch = Annotated[
    int | None,
    typer.Option(help=f"Images per run [default: {BATCH}; as many as an engine takes].", min=1),
]
Limit = Annotated[
    int | None, typer.Option(help="So many images, evenly spaced over the split.", min=1)
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be used, and count them.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        help=f"Images that are decoded at once [default: one a core, {MOST_THREADS} at most].",
        min=1,
    ),
]
Minimum = Annotated[
    float | None,
    typer.Option(help="Exit status 1 where top-1 is below so many percent.", min=0, max=100),
]
Device = Annotated[
    str | None, typer.Option(help="What runs a checkpoint: cpu, cuda or cuda:N [default: cpu].")
]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Run a checkpoint with NHWC arrays.")
]
PrecisionName = Annotated[
    Precision | None,
    typer.Option("--precision", help="What a checkpoint computes in [default: fp32]."),
]
Ema = Annotated[
    bool | None, typer.Option("--ema/--no-ema", help="Take a checkpoint's moving average.")
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for evaluation.json, tables (.csv) and the confusion matrix (.svg)."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at --output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointOptions:
    """What only a checkpoint can be told; a bundle has it built in. None: not said."""

    device: str | None
    channels_last: bool | None
    precision: Precision | None
    activation: Activation | None
    ema: bool | None

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        names = ("device", "channels_last", "precision", "activation", "ema")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]


def command(
    network: SubjectPath,
    data: Source,
    split: SplitName = "test",
    hold_out: HoldOut = None,
    ten_crop: TenCrop = False,
    crop_ratio: CropRatio = None,
    image_size: ImageSize = None,
    batch: Batch = None,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    minimum: Minimum = None,
    device: Device = None,
    channels_last: ChannelsLast = False,
    precision: PrecisionName = None,
    activation: ActivationName = None,
    ema: Ema = None,
    as_json: AsJson = False,
    output: Output = None,
    force: Force = False,
) -> None:
    """Count what a network gets right: top-1, top-5, loss, and every class by itself.

    The same images, prepared in the same way, go through a checkpoint in training form, a model's
    ONNX graph or an engine of any backend, whole or split.
    """
    from parnet_deploy.data import open_samples
    from parnet_deploy.evaluate import Options

    of_checkpoint = CheckpointOptions(
        device=device,
        channels_last=channels_last or None,
        precision=precision,
        activation=activation,
        ema=ema,
    )
    size = parse_size(image_size) if image_size is not None else None
    options = Options(
        crops="ten" if ten_crop else "centre",
        limit=limit,
        skip_bad=skip_bad,
        threads=threads or min(MOST_THREADS, usable_cores()),
    )
    images = open_samples(data, split, hold_out=hold_out, skip_bad=skip_bad)
    if split == "test":
        _warn_of_learnt_images(network, images.name, hold_out)
    with ExitStack() as opened:
        # The folder is made first: what cannot be written is better known before than after.
        folder = opened.enter_context(_staged(output, force=force)) if output else None
        subject = _open(network, size, batch, of_checkpoint)
        opened.callback(subject.runner.close)
        subject = replace(subject, preprocessing=_cropped(subject.preprocessing, crop_ratio))
        found = _evaluate(subject, images, split, options, minimum, folder)
    _print(found, output, as_json=as_json)
    _fail_below(minimum, found)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedOn:
    """Of a run's configuration, which images it was trained on."""

    data: str
    hold_out: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Of a run's record, its configuration."""

    config: TrainedOn


def _warn_of_learnt_images(network: Path, data: str, hold_out: float | None) -> None:
    """Say so when the test split has images that the network, in its run's folder, learnt from."""
    record = (network if network.is_dir() else network.parent) / "run.json"
    try:
        run = decode(record.read_bytes(), Trained).config
    except (OSError, SpecError):  # it stands by itself
        return
    if run.data == data and run.hold_out != hold_out:
        part = "without one" if run.hold_out is None else f"with --hold-out {run.hold_out:g}"
        warn([f"it was trained on these images {part}: some that it learnt from are evaluated"])


def _fail_below(minimum: float | None, found: Evaluation) -> None:
    """End with exit status 1 where fewer images are recognised than were asked for."""
    if found.passed is False:
        tell(
            f"FAILED: {found.measures.top1.percent:.2f} % of the images are recognised, and at "
            f"least {minimum:g} % are asked for"
        )
        raise typer.Exit(1)


def _staged(output: Path, *, force: bool) -> AbstractContextManager[Path]:
    from parnet_deploy.evaluate.report import JSON_FILE

    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "--output draws with matplotlib, which is not installed: "
            "pip install 'parnet-deploy[export]'; --json needs nothing more"
        )
    return staged(output, force=force, marker=JSON_FILE)


def _evaluate(
    subject: Subject,
    images: Split,
    part: Part,
    options: Options,
    minimum: float | None,
    folder: Path | None,
) -> Evaluation:
    """Evaluate, and write the report where there is a folder for it."""
    from parnet_deploy.evaluate import evaluate
    from parnet_deploy.evaluate.report import write_report

    with reporting() as progress:
        found, outcome = evaluate(
            subject, images, part, options, minimum=minimum, progress=progress
        )
    if folder is not None:
        write_report(folder, found, outcome.answers, images.samples)
    return found


def _print(found: Evaluation, output: Path | None, *, as_json: bool) -> None:
    warn(found.warnings)
    if output is not None:
        tell(f"written: {output}")
    if as_json:
        print_json(found)
    else:
        print_evaluation(found)


def _open(
    path: Path, size: tuple[int, int] | None, batch: int | None, options: CheckpointOptions
) -> Subject:
    """What is at a path, whatever it is, ready to be run."""
    if not path.exists():
        raise BundleError(
            f"there is nothing at {path}; a checkpoint, a model bundle or an engine bundle is "
            "expected"
        )
    if path.is_dir() and not (path / MANIFEST).exists() and (path / CHECKPOINT).is_file():
        path = path / CHECKPOINT
    if path.is_file():
        return _open_checkpoint(path, size, batch or BATCH, options)
    if options.given:
        raise UsageError(
            f"{', '.join(options.given)} is for checkpoints; {path} is a bundle, which has it "
            "built in"
        )
    return _open_bundle(path, size, batch)


def _open_bundle(path: Path, size: tuple[int, int] | None, batch: int | None) -> Subject:
    from parnet_deploy.evaluate import choose_batch, open_subject

    subject = open_subject(path)
    with ExitStack() as opened:
        opened.callback(subject.runner.close)
        own = subject.preprocessing.size
        if size not in (None, own):
            raise UsageError(
                f"{path} takes images of {own[0]}x{own[1]} pixels and no others; 'parnet-deploy "
                "export --image-size' makes one for others"
            )
        subject = replace(subject, batch=choose_batch(subject.batch, batch))
        opened.pop_all()
    return subject


def _open_checkpoint(
    path: Path, size: tuple[int, int] | None, batch: int, options: CheckpointOptions
) -> Subject:
    """A checkpoint in training form, in torch."""
    from parnet_deploy.evaluate import Subject

    try:
        from parnet_deploy.net import TorchRunner, load_checkpoint
    except ImportError as exc:
        raise MissingDependencyError(
            f"a checkpoint is evaluated with {exc.name}, which is not installed: "
            "pip install 'parnet-deploy[export]'; an engine needs no torch"
        ) from exc
    found = load_checkpoint(
        path, activation=options.activation, ema=options.ema is not False, image_size=size
    )
    spec, device = found.model.spec, options.device or "cpu"
    return Subject(
        kind="checkpoint",
        path=path,
        sha256=found.source.sha256 or "",
        runs_on=f"training form in torch, on {device}",
        precision=options.precision or "fp32",
        spec=spec,
        labels=labels_of(found) or tuple(f"class {index}" for index in range(spec.classes)),
        preprocessing=replace(preprocessing_of(found), in_graph=False),
        own_preprocessing=found.facts.preprocessing is not None,
        batch=BatchRange(min=1, opt=batch, max=batch),
        softmax=False,
        runner=TorchRunner(found.model, device=device, channels_last=bool(options.channels_last)),
    )


def _cropped(preprocessing: Preprocessing, ratio: float | None) -> Preprocessing:
    return preprocessing if ratio is None else replace(preprocessing, crop_ratio=ratio)
