"""``parnet-deploy export``: a network becomes a bundle of ONNX graphs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from parnet_deploy.bundle import BatchRange, ModelBundle, Source, refuse_existing
from parnet_deploy.cli import quantising
from parnet_deploy.cli.architecture import (
    ActivationName,
    Blocks,
    Classes,
    Depth,
    HasSqueeze,
    ImageSize,
    Streams,
    Widths,
    change_spec,
    find_spec,
    given,
)
from parnet_deploy.cli.checkpoint import (
    default_preprocessing,
    labels_of,
    origin,
    preprocessing_of,
)
from parnet_deploy.cli.console import (
    Justify,
    human_bytes,
    new_table,
    print_table,
    progress,
    say,
    warn,
)
from parnet_deploy.cli.counting import counting, nothing
from parnet_deploy.cli.field_options import with_options_of
from parnet_deploy.cli.next_command import next_command
from parnet_deploy.cli.options import parse_batch, parse_size
from parnet_deploy.cli.packages import need
from parnet_deploy.errors import DataError, UsageError, os_reason
from parnet_deploy.spec import (
    Activation,
    Backend,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    StemMode,
    count,
    default_form,
)
from parnet_deploy.spec.form import IdentityBN, Join, Layout, Squeeze
from parnet_deploy.spec.precision import Precision

if TYPE_CHECKING:
    from parnet_deploy.export import ExportOptions
    from parnet_deploy.export.quantising import QuantiseOptions
    from parnet_deploy.net import ParNet
    from parnet_deploy.spec.learned import LearnedRanges

VariantName = Annotated[
    str | None,
    typer.Option("--variant", help="Network: s, m, l, xl ... (see 'variants'), or SPEC.json."),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(help="Trained weights: ours (.safetensors) or the authors' (.pth.tar)."),
]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the bundle [default: models/parnet-VARIANT].")
]
Batch = Annotated[str, typer.Option(help="Images per run: N (fixed) or MIN:OPT:MAX (dynamic).")]
Stem = Annotated[
    StemMode, typer.Option(help="Every stage computes its own stem, or the stem is a stage.")
]
Softmax = Annotated[bool, typer.Option("--softmax", help="Give probabilities, not logits.")]
Preprocess = Annotated[
    bool, typer.Option("--preprocess", help="Take uint8 images; normalise them in the graph.")
]
Labels = Annotated[Path | None, typer.Option(help="Text file with one class name a line.")]
Ema = Annotated[bool, typer.Option("--ema/--no-ema", help="Take a checkpoint's moving average.")]
Seed = Annotated[int, typer.Option(help="Seed of untrained weights.")]
Opset = Annotated[int, typer.Option(min=18, max=21, help="ONNX operator set, 18 to 21.")]
PrecisionName = Annotated[
    Precision, typer.Option("--precision", help="What the graphs compute in.")
]
For = Annotated[
    Backend, typer.Option("--for", help="Backend whose best deploy form is the default.")
]
FormIdentity = Annotated[
    IdentityBN | None,
    typer.Option("--identity-bn", help="Deploy form: the skip's batch normalisation."),
]
FormSqueeze = Annotated[
    Squeeze | None, typer.Option("--squeeze-op", help="Deploy form: operator of a squeeze.")
]
FormJoin = Annotated[
    Join | None, typer.Option("--join", help="Deploy form: how a fusion joins its inputs.")
]
FormLayout = Annotated[
    Layout | None,
    typer.Option("--layout", help="Deploy form: axes behind a gated block's convolution."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that stands there.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What is to be exported, found from the options."""

    model: ParNet
    source: Source
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    ranges: LearnedRanges | None = None


@with_options_of(quantising.Options)
def command(
    variant: VariantName = None,
    checkpoint: CheckpointFile = None,
    output: Output = None,
    image_size: ImageSize = None,
    batch: Batch = "1",
    stem: Stem = "replicate",
    softmax: Softmax = False,
    preprocess: Preprocess = False,
    labels: Labels = None,
    widths: Widths = None,
    streams: Streams = None,
    depth: Depth = None,
    blocks: Blocks = None,
    activation: ActivationName = None,
    squeeze: HasSqueeze = None,
    classes: Classes = None,
    ema: Ema = True,
    seed: Seed = 0,
    precision: PrecisionName = "fp32",
    opset: Opset = 18,
    target: For = "tensorrt",
    identity_bn: FormIdentity = None,
    squeeze_op: FormSqueeze = None,
    join: FormJoin = None,
    layout: FormLayout = None,
    force: Force = False,
    **quantise: Any,
) -> None:
    """Fuse a ParNet and export it: the whole network and one graph per stage.

    Without --checkpoint, seeded UNTRAINED weights are exported. Before the bundle is put in place,
    the whole graph must equal the network, and the stages joined together the whole graph. int8 and
    fp8 take images to calibrate on (--calibrate), or a checkpoint trained with --qat.
    """
    changes = given(
        streams=streams, depth=depth, widths=widths, blocks=blocks, squeeze=squeeze, classes=classes
    )
    changes |= given(activation=activation, image_size=image_size)
    wanted = _Wanted(
        batch=parse_batch(batch),
        stem=stem,
        softmax=softmax,
        preprocess=preprocess,
        form=_form(target, identity_bn=identity_bn, squeeze=squeeze_op, join=join, layout=layout),
        precision=precision,
        opset=opset,
    )
    asked = quantising.find_asked(quantise, precision, target, force=force)
    named = _read_labels(labels) if labels else None
    base = find_spec(variant) if variant is not None else None
    _check_first(output, base, asked, force=force)
    if asked is not None:
        asked = asked.with_images(checkpoint)
    network = _find_network(base, checkpoint, changes, seed=seed, ema=ema)
    folder = output or _folder(network.model.spec)
    _export(network, folder, wanted, asked, named, target, force=force)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """How a network is to be exported, before it is known which; see `export.ExportOptions`."""

    batch: BatchRange
    stem: StemMode
    softmax: bool
    preprocess: bool
    form: DeployForm
    precision: Precision
    opset: int

    def options(self, name: str, preprocessing: Preprocessing) -> ExportOptions:
        """The same, for a network with this preprocessing and a bundle of this name."""
        from parnet_deploy.export import ExportOptions

        return ExportOptions(
            name=name,
            preprocessing=replace(preprocessing, in_graph=self.preprocess),
            batch=self.batch,
            stem=self.stem,
            softmax=self.softmax,
            form=self.form,
            precision=self.precision,
            opset=self.opset,
        )


def _export(
    network: Network,
    folder: Path,
    wanted: _Wanted,
    asked: quantising.Asked | None,
    named: Sequence[str] | None,
    target: Backend,
    *,
    force: bool,
) -> None:
    """Export what was found, and tell of it."""
    from parnet_deploy.export import export_model

    options = wanted.options(Path(os.path.abspath(folder)).name, network.preprocessing)
    labels = named or network.labels or None
    quantise = report = None
    if asked is not None:
        asked.check_outside(folder)
        quantise, report = _read_images(asked, options, network, labels), asked.report
    with counting("quantise") if asked else nullcontext(nothing) as count:
        bundle = export_model(
            network.model,
            network.source,
            folder,
            options,
            labels,
            quantise=quantise,
            quantised=partial(quantising.show_quantised, folder=report),
            counted=count,
            force=force,
            progress=progress,
        )
    _print_summary(bundle)
    say(next_command(bundle, target))


def _read_images(
    asked: quantising.Asked, options: ExportOptions, network: Network, labels: Sequence[str] | None
) -> QuantiseOptions:
    spec = network.model.spec
    blocks = [block.name for block in network.model.layout if block.kind != "head"]
    quantising.check_kept(asked.options.kept, blocks)
    return asked.read(spec.name, options.preprocessing, labels or (), spec.classes, network.ranges)


def _folder(spec: ParNetSpec) -> Path:
    return Path("models") / f"parnet-{spec.name}"


def _check_first(
    output: Path | None,
    base: ParNetSpec | None,
    asked: quantising.Asked | None,
    *,
    force: bool,
) -> None:
    """Say at once what is in the way. A checkpoint alone tells the output's name only when read."""
    known = output or (_folder(base) if base is not None else None)
    if known is not None:
        refuse_existing(known, force=force)
        if asked is not None:
            asked.check_outside(known)
    need("export")


def _form(target: Backend, **choices: str | None) -> DeployForm:
    """The deploy form that serves a backend best, with what was chosen otherwise."""
    return replace(default_form(target), **given(**choices))


def _find_network(
    base: ParNetSpec | None,
    checkpoint: Path | None,
    changes: dict[str, Any],
    *,
    seed: int,
    ema: bool,
) -> Network:
    if checkpoint is not None:
        progress(f"read: {checkpoint}")
        return _trained(checkpoint, base, ema=ema, **changes)
    if base is None:
        raise UsageError("give --variant or --checkpoint: which network is to be exported?")
    return _untrained(change_spec(base, **changes), seed)


def _untrained(spec: ParNetSpec, seed: int) -> Network:
    from parnet_deploy.net import initialise

    progress(f"make: UNTRAINED weights from seed {seed}, since no --checkpoint was given")
    return Network(
        model=initialise(spec, seed=seed),
        source=Source(kind="untrained", seed=seed),
        labels=(),
        preprocessing=default_preprocessing(spec),
    )


def _trained(
    checkpoint: Path,
    base: ParNetSpec | None,
    *,
    ema: bool,
    activation: Activation | None = None,
    image_size: str | None = None,
    **changes: Any,
) -> Network:
    """Read a checkpoint; what was said about the architecture must be what its shapes say."""
    from parnet_deploy.net import load_checkpoint

    size = None if image_size is None else parse_size(image_size)
    expected = None
    if base is not None or changes:
        described = load_checkpoint(checkpoint, activation=activation, ema=ema).model.spec
        asked = change_spec(base or described, **{"classes": described.classes, **changes})
        expected = replace(asked, image_size=described.image_size, bn_eps=described.bn_eps)
    found = load_checkpoint(
        checkpoint, activation=activation, ema=ema, expected=expected, image_size=size
    )
    spec = found.model.spec
    progress(f"found: {origin(found.source)}, {spec.activation}, {spec.classes} classes")
    return Network(
        model=found.model,
        source=found.source,
        labels=labels_of(found),
        preprocessing=preprocessing_of(found),
        ranges=found.facts.ranges,
    )


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
    except OSError as exc:
        raise DataError(f"cannot read the labels in {path}: {os_reason(exc)}") from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"cannot read the labels in {path}: they are not UTF-8 text") from exc
    if not labels:
        raise DataError(f"there are no labels in {path}; one class name a line is expected")
    return labels


def _print_summary(bundle: ModelBundle) -> None:
    manifest = bundle.manifest
    counts = count(manifest.spec)
    total = human_bytes(sum(record.bytes for record in manifest.files.values()))
    height, width = manifest.spec.image_size
    say(
        f"{bundle.path}: depth {counts.depth}, {counts.parameters_fused / 1e6:.3f} M parameters, "
        f"{counts.flop_fused / 1e9:.2f} GFLOP at {height}x{width}, {total} with its checkpoint"
    )
    columns: dict[str, Justify] = {"stage": "left", "blocks": "right", "gives": "left"}
    table = new_table(None, columns | {"an image": "right"})
    for stage in manifest.stages:
        gives = ", ".join(f"{spec.name} {list(spec.shape[1:])}" for spec in stage.outputs)
        size = sum(spec.image_nbytes for spec in stage.outputs)
        table.add_row(stage.name, str(len(stage.blocks)), escape(gives), human_bytes(size))
    print_table(table)
    warn(manifest.warnings)
