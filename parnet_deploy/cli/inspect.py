"""``parnet-deploy inspect``: what is in a bundle, as tables, as JSON, and as a picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from parnet_deploy.bundle import EngineManifest, ModelManifest, Source, open_bundle
from parnet_deploy.cli.console import (
    Justify,
    console,
    human_bytes,
    new_table,
    print_json,
    print_table,
    tell,
)
from parnet_deploy.cli.inspection import Inspection, Part, inspect_bundle
from parnet_deploy.cli.output import write_file
from parnet_deploy.cli.picture import batch_text, network_line, picture_of
from parnet_deploy.diagram import draw
from parnet_deploy.spec import Preprocessing, TensorSpec
from parnet_deploy.spec.quantisation import Quantisation

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE_OR_ENGINE", help="Folder of a model or engine bundle.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with exact numbers.")]
Svg = Annotated[
    Path | None, typer.Option("--svg", help="Draw the network, its streams side by side.")
]
Layers = Annotated[bool, typer.Option("--layers", help="List every layer or kernel, too.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a picture that stands there.")]

_NAMED = 3

_MODEL_STATES = {
    "unchanged": "stands there unchanged",
    "changed": "another bundle stands there now",
    "missing": "not there any more",
}


def command(
    bundle: BundlePath,
    as_json: AsJson = False,
    svg: Svg = None,
    layers: Layers = False,
    force: Force = False,
) -> None:
    """Show what is in a bundle: its stages, what crosses between them, layers, precisions."""
    found = inspect_bundle(open_bundle(bundle), layers=layers)
    if svg is not None:
        write_file(svg, draw(picture_of(found)), force=force)
    if as_json:
        print_json(found)
    else:
        _print_tables(found)
    if svg is not None:
        tell(f"drawn: {svg}")


def _print_tables(found: Inspection) -> None:
    for warning in found.manifest.warnings:
        console.print(f"[bold red]WARNING[/] {escape(warning)}", highlight=False, soft_wrap=True)
    tables = [_facts(found), _stages(found), _contents(found)]
    tables += [_cuts(found)] if found.cuts else []
    if any(part.layers is not None and part.computes for part in found.parts):
        tables.append(_types(found))
    tables += [_files(found), *(_layers(part) for part in found.parts if part.layers is not None)]
    for table in tables:
        print_table(table)
        console.print()
    for reason in found.unknown:
        console.print(f"not shown: {escape(reason)}", highlight=False, soft_wrap=True)


def _facts(found: Inspection) -> Table:
    manifest = found.manifest
    table = new_table(escape(f"{manifest.name}, {_kind(manifest)}"), {"": "left", " ": "left"})
    table.show_header = False
    spec, form = manifest.spec, manifest.form
    facts = {"network": f"{spec.name}: {network_line(found)}"}
    facts["blocks"] = (
        f"{spec.activation}, {'with' if spec.squeeze else 'no'} squeeze; deploy form: identity BN "
        f"{form.identity_bn}, squeeze {form.squeeze}, join {form.join}"
    )
    facts["weights"] = _source(manifest.source)
    facts["precision"] = (
        manifest.arithmetic if isinstance(manifest, EngineManifest) else manifest.precision
    )
    facts |= dict(_quantisation(manifest.quantisation))
    facts["batch"] = batch_text(found)
    facts["input"] = (
        f"{', '.join(map(_tensor, manifest.inputs))}; {_preprocessing(manifest.preprocessing)}"
    )
    facts["output"] = ", ".join(map(_tensor, manifest.outputs))
    facts["output"] += ", probabilities (softmax)" if manifest.softmax else ""
    facts |= dict(_own_facts(found, manifest))
    facts["tools"] = _pairs(manifest.tools)
    facts["made"] = manifest.created
    for name, value in facts.items():
        table.add_row(name, escape(value))
    return table


def _quantisation(found: Quantisation | None) -> Iterator[tuple[str, str]]:
    """How it is quantised: what, into what, on which images, and what is not."""
    if found is None:
        return
    scheme, calibration = found.scheme, found.calibration
    per = "output channel" if found.per_channel else "kernel"
    done = [name for name in ("equalised", "bias_corrected") if getattr(found, name)]
    yield (
        "quantised",
        f"{len(found.tensors)} activations in {scheme.activation}, weights in {scheme.weight} with "
        f"a scale for each {per}, the rest in {scheme.base}"
        + "".join(f"; {name.replace('_', ' ')}" for name in done),
    )
    percentile = "" if calibration.percentile is None else f" {calibration.percentile:g}"
    source = f"{calibration.images} images of {calibration.source}"
    digest = f"sha256 {calibration.sha256[:12]}"
    yield "calibration", f"{calibration.method}{percentile} on {source} ({digest})"
    yield "kept", ", ".join(found.kept) or "no layer: every convolution is quantised"


def _kind(manifest: ModelManifest | EngineManifest) -> str:
    if isinstance(manifest, ModelManifest):
        return "a model bundle"
    shape = "one engine per stage" if manifest.split else "one engine of the whole network"
    return f"an engine bundle: {manifest.backend}, {shape}"


def _own_facts(
    found: Inspection, manifest: ModelManifest | EngineManifest
) -> Iterator[tuple[str, str]]:
    """What only one of the two kinds of bundle says."""
    if isinstance(manifest, ModelManifest):
        yield "graphs", f"ONNX opset {manifest.opset}; stem: {manifest.stem}"
        return
    yield "target", _pairs(manifest.target)
    yield "options", _pairs(manifest.options)
    if found.model is not None:
        reference, state = manifest.model, _MODEL_STATES[found.model.state]
        yield (
            "built from",
            f"{found.model.path} ({reference.name}, manifest {reference.manifest_sha256[:12]}): "
            + state,
        )


def _source(source: Source | None) -> str:
    if source is None:
        return "not recorded"
    if source.kind == "untrained":
        return f"UNTRAINED, from seed {source.seed}"
    origin = "the authors' release" if source.kind == "official" else "parnet-deploy"
    average = ", moving average (EMA)" if source.ema else ""
    return f"{source.file} ({origin}, sha256 {(source.sha256 or '')[:12]}{average})"


def _preprocessing(values: Preprocessing) -> str:
    where = "in the graph" if values.in_graph else "by the caller"
    return (
        f"{values.interpolation} resize, centre crop {values.crop_ratio:g}; normalised {where}: "
        f"mean {_numbers(values.mean)}, std {_numbers(values.std)}"
    )


def _stages(found: Inspection) -> Table:
    devices: dict[str, Justify] = {"device": "left"} if _has_devices(found) else {}
    table = new_table(
        "Stages", {"stage": "left", **devices, "blocks": "left", "reads": "left", "gives": "left"}
    )
    for part in found.parts:
        table.add_row(
            part.name,
            *([part.device] if devices else []),
            _block_names(part.blocks),
            ", ".join(tensor.name for tensor in part.inputs),
            ", ".join(tensor.name for tensor in part.outputs),
        )
    return table


def _contents(found: Inspection) -> Table:
    """Layers, precisions and sizes; for a plan kernels and streams instead of operators."""
    has_kernels = any(part.kernels is not None for part in found.parts)
    columns: dict[str, Justify] = {"stage": "left", "size": "right"}
    columns |= {"kernels": "right", "streams": "right"} if has_kernels else {"layers": "right"}
    columns |= {"computes": "left"} if any(part.computes for part in found.parts) else {}
    columns |= {"precisions": "left", "kinds": "left"}
    table = new_table("Layers", columns)
    for part in found.parts:
        layers = None if part.kinds is None else sum(part.kinds.values())
        counted = (part.kernels, part.streams) if has_kernels else (layers,)
        table.add_row(
            part.name,
            human_bytes(part.bytes),
            *(_known(number) for number in counted),
            *([_computes(part)] if "computes" in columns else []),
            _precisions(part),
            _pairs(part.kinds or {}) or "-",
        )
    return table


def _cuts(found: Inspection) -> Table:
    table = new_table(
        "Cuts, for one image",
        {"value": "left", "from": "left", "to": "left", "shape": "left", "bytes": "right"},
    )
    for cut in found.cuts:
        shape = _tensor(cut.tensor).removeprefix(f"{cut.tensor.name} ")
        table.add_row(cut.tensor.name, cut.source, cut.target, escape(shape), f"{cut.bytes:,}")
    return table


def _files(found: Inspection) -> Table:
    table = new_table("Files", {"file": "left", "size": "right", "sha256": "left"})
    for name, record in found.manifest.files.items():
        table.add_row(escape(name), human_bytes(record.bytes), record.sha256[:12])
    return table


def _layers(part: Part) -> Table:
    has_streams = part.kernels is not None
    columns: dict[str, Justify] = {"": "right", "kind": "left", "name": "left"}
    columns |= {"stream": "right", "computes": "left"} if has_streams else {"makes": "left"}
    table = new_table(f"{part.name}: {'kernels' if has_streams else 'operators'}", columns)
    for number, layer in enumerate(part.layers or (), 1):
        stream = [_known(layer.stream)] if has_streams else []
        table.add_row(
            str(number),
            escape(layer.kind),
            escape(layer.name),
            *stream,
            escape(", ".join(layer.makes)),
        )
    return table


def _has_devices(found: Inspection) -> bool:
    return any(part.device for part in found.parts)


def _types(found: Inspection) -> Table:
    """What every layer computes in, part by part."""
    told = [part for part in found.parts if part.computes]
    columns: dict[str, Justify] = {"layer": "left", **{part.name: "left" for part in told}}
    table = new_table("What layers compute in", columns)
    for name in dict.fromkeys(name for part in told for name in part.computes or ()):
        table.add_row(name, *((part.computes or {}).get(name, "") for part in told))
    return table


def _computes(part: Part) -> str:
    """``13 int8, 2 fp16 (stem1, head)``: layers of a rarer type by name, where they are few."""
    counted = Counter((part.computes or {}).values()).most_common()
    words: list[str] = []
    for kind, count in counted:
        names = [name for name, found in (part.computes or {}).items() if found == kind]
        which = f" ({', '.join(names)})" if words and count <= _NAMED else ""
        words.append(f"{count} {kind}{which}")
    return ", ".join(words) or "-"


def _precisions(part: Part) -> str:
    if part.weights is not None:
        return ", ".join(f"{number:,} {dtype}" for dtype, number in part.weights.items())
    return ", ".join(part.dtypes) or "-"


def _block_names(blocks: Sequence[str]) -> str:
    """``stem1-3, stream2_block1-5`` instead of every name."""
    names = []
    for prefix, numbered in groupby(blocks, key=lambda name: re.sub(r"\d+$", "", name)):
        numbers = [name.removeprefix(prefix) for name in numbered]
        last = f"-{numbers[-1]}" if len(numbers) > 1 else ""
        names.append(f"{prefix}{numbers[0]}{last}")
    return ", ".join(names)


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _pairs(values: Mapping[str, Any]) -> str:
    """``name value, ...``, without what is not set."""
    return ", ".join(
        name if value is True else f"{name} {_value(value)}"
        for name, value in values.items()
        if value is not None and value is not False and value not in ([], ())
    )


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)
