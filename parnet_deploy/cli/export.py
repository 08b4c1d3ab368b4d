"""``parnet-deploy export``: a network becomes a bundle of ONNX graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parnet_deploy.bundle import ModelBundle, Source
from parnet_deploy.cli.console import console, human_bytes
from parnet_deploy.cli.options import parse_batch, parse_numbers, parse_size
from parnet_deploy.errors import MissingDependencyError, UsageError
from parnet_deploy.spec import (
    Activation,
    Backend,
    ParNetSpec,
    Preprocessing,
    StemMode,
    default_form,
)
from parnet_deploy.spec import variant as find_variant
from parnet_deploy.spec.form import IdentityBN, Join, Squeeze

if TYPE_CHECKING:
    from parnet_deploy.net import ParNet

IMAGENET_CLASSES = 1000

VariantName = Annotated[
    str | None,
    typer.Option("--variant", help="Network: s, m, l, xl, cifar-s ...; see 'variants'."),
]
CheckpointFile = Annotated[
    Path | None,
    typer.Option(help="Trained weights: ours (.safetensors) or the authors' (.pth.tar)."),
]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the bundle [default: models/parnet-VARIANT].")
]
ImageSize = Annotated[str | None, typer.Option(help="Input size in pixels: 224 or HxW.")]
Batch = Annotated[str, typer.Option(help="Images per run: N (fixed) or MIN:OPT:MAX (dynamic).")]
Stem = Annotated[
    StemMode, typer.Option(help="Every stage computes its own stem, or the stem is a stage.")
]
Softmax = Annotated[bool, typer.Option("--softmax", help="Give probabilities, not logits.")]
Preprocess = Annotated[
    bool, typer.Option("--preprocess", help="Take uint8 images; normalise them in the graph.")
]
Labels = Annotated[Path | None, typer.Option(help="Text file with one class name a line.")]
Widths = Annotated[
    str | None, typer.Option(help="C1,...,Cn,Clast: a width per stream, then the last block's.")
]
Streams = Annotated[int | None, typer.Option(help="Number of streams, 1 to 4.")]
Blocks = Annotated[str | None, typer.Option(help="Blocks in each stream, such as 4,5,5.")]
ActivationName = Annotated[
    Activation | None,
    typer.Option(help="Non-linearity; an authors' checkpoint does not say it [default: silu]."),
]
HasSqueeze = Annotated[
    bool | None, typer.Option("--squeeze/--no-squeeze", help="Skip-Squeeze-Excitation.")
]
Classes = Annotated[int | None, typer.Option(help="Number of classes.")]
Ema = Annotated[bool, typer.Option("--ema/--no-ema", help="Take a checkpoint's moving average.")]
Seed = Annotated[int, typer.Option(help="Seed of untrained weights.")]
Opset = Annotated[int, typer.Option(help="ONNX operator set, 18 to 21.")]
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
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that stands there.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What is to be exported, found from the options."""

    model: ParNet
    source: Source
    labels: tuple[str, ...]
    preprocessing: Preprocessing


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
    blocks: Blocks = None,
    activation: ActivationName = None,
    squeeze: HasSqueeze = None,
    classes: Classes = None,
    ema: Ema = True,
    seed: Seed = 0,
    opset: Opset = 18,
    target: For = "tensorrt",
    identity_bn: FormIdentity = None,
    squeeze_op: FormSqueeze = None,
    join: FormJoin = None,
    force: Force = False,
) -> None:
    """Fuse a ParNet and export it: the whole network and one graph per stage.

    Without --checkpoint, seeded UNTRAINED weights are exported. Before the bundle is put in place,
    the stages joined together must equal the whole graph in ONNX Runtime.
    """
    if variant is None and checkpoint is None:
        raise UsageError("give --variant or --checkpoint: which network is to be exported?")
    batch_range = parse_batch(batch)
    size = {} if image_size is None else {"image_size": parse_size(image_size)}
    changes = {"streams": streams, "widths": widths, "blocks": blocks, "squeeze": squeeze}
    changes |= {"classes": classes, "activation": activation}
    given = {name: value for name, value in changes.items() if value is not None}
    form_given: dict[str, Any] = {"identity_bn": identity_bn, "squeeze": squeeze_op, "join": join}
    form = replace(default_form(target), **{k: v for k, v in form_given.items() if v})
    _need_torch()
    from parnet_deploy.export import ExportOptions, export_model

    if checkpoint is None:
        network = _untrained(str(variant), given | size, seed)
    else:
        network = _trained(checkpoint, variant, given, size, ema=ema)
    name = output.name if output else f"parnet-{network.model.spec.name}"
    options = ExportOptions(
        name=name,
        preprocessing=replace(network.preprocessing, in_graph=preprocess),
        batch=batch_range,
        stem=stem,
        softmax=softmax,
        form=form,
        opset=opset,
    )
    bundle = export_model(
        network.model,
        network.source,
        output or Path("models") / name,
        options,
        _read_labels(labels) if labels else network.labels,
        force=force,
        progress=lambda step: console.print(f"  {step}", highlight=False),
    )
    _print_summary(bundle)


def _untrained(name: str, changes: dict[str, Any], seed: int) -> Network:
    from parnet_deploy.net import initialise

    spec = change_spec(find_variant(name).spec, **changes)
    return Network(
        model=initialise(spec, seed=seed),
        source=Source(kind="untrained", seed=seed),
        labels=(),
        preprocessing=_default_preprocessing(spec),
    )


def _trained(
    checkpoint: Path,
    name: str | None,
    changes: dict[str, Any],
    size: dict[str, tuple[int, int]],
    *,
    ema: bool,
) -> Network:
    """Read a checkpoint; what was said about the architecture must be what its shapes say."""
    from parnet_deploy.net import load_checkpoint

    activation: Activation | None = changes.pop("activation", None)
    expected = None
    if name is not None or changes:
        described = load_checkpoint(checkpoint, activation=activation, ema=ema).model.spec
        base = find_variant(name).spec if name else described
        if "classes" not in changes:
            changes["classes"] = described.classes
        expected = replace(
            change_spec(base, **changes), image_size=described.image_size, bn_eps=described.bn_eps
        )
    found = load_checkpoint(checkpoint, activation=activation, ema=ema, expected=expected, **size)
    spec = found.model.spec
    labels = found.facts.labels
    if not labels and found.source.kind == "official" and spec.classes == IMAGENET_CLASSES:
        labels = imagenet_labels()
    preprocessing = found.facts.preprocessing or _default_preprocessing(spec)
    return Network(
        model=found.model,
        source=found.source,
        labels=labels,
        preprocessing=replace(preprocessing, size=spec.image_size),
    )


def change_spec(spec: ParNetSpec, **changes: Any) -> ParNetSpec:
    """A spec with the fields that were given on the command line; the name tells of the change."""
    changed = spec
    if "streams" in changes and "widths" not in changes:
        changed = changed.with_streams(changes["streams"])
    elif "widths" in changes:
        widths = parse_numbers("--widths")(changes["widths"])
        streams = changes.get("streams", len(widths) - 1)
        changed = changed.with_streams(streams).with_widths(widths)
    if "blocks" in changes:
        changed = replace(changed, stream_blocks=parse_numbers("--blocks")(changes["blocks"]))
    for field in ("activation", "squeeze", "classes", "image_size"):
        if field in changes:
            changed = replace(changed, **{field: changes[field]})
    return changed


def _default_preprocessing(spec: ParNetSpec) -> Preprocessing:
    # A crop of 224 out of 256 is usual for photographs; small images are taken whole.
    ratio = 0.875 if min(spec.image_size) >= 128 else 1.0
    return Preprocessing(size=spec.image_size, crop_ratio=ratio)


def imagenet_labels() -> tuple[str, ...]:
    """Names of the 1000 ImageNet classes, in the usual order."""
    data = resources.files("parnet_deploy") / "data" / "imagenet_labels.txt"
    return tuple(data.read_text(encoding="utf-8").splitlines())


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read the labels in {path}: {exc}") from exc


def _need_torch() -> None:
    try:
        import onnx_graphsurgeon  # noqa: F401 - only whether it is there
        import torch  # noqa: F401 - likewise
    except ImportError as exc:
        raise MissingDependencyError(
            f"export needs {exc.name}, which is not installed: pip install 'parnet-deploy[export]'"
        ) from exc


def _print_summary(bundle: ModelBundle) -> None:
    manifest = bundle.manifest
    for warning in manifest.warnings:
        console.print(f"[bold red]WARNING[/] {warning}", highlight=False)
    total = sum(record.bytes for record in manifest.files.values())
    console.print(
        f"[bold]{bundle.path}[/]: {manifest.name}, {len(manifest.stages)} stages, "
        f"{len(manifest.cuts)} cuts, {human_bytes(total)}",
        highlight=False,
    )
    console.print(
        f"next: parnet-deploy build-engine {bundle.path} --split-streams", highlight=False
    )
