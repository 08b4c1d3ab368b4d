"""An inspected bundle as a picture."""

from __future__ import annotations

from parnet_deploy.bundle import EngineManifest
from parnet_deploy.cli.console import human_bytes
from parnet_deploy.cli.inspection import WHOLE, Inspection, Part
from parnet_deploy.diagram import Picture, PictureStage


def picture_of(found: Inspection) -> Picture:
    """What is to be drawn of a bundle: its stages, or its one engine of the whole network."""
    manifest = found.manifest
    parts = [part for part in found.parts if part.name != WHOLE] or found.parts
    return Picture(
        spec=manifest.spec,
        title=manifest.name,
        subtitle=f"{network_line(found)}  ·  {_target(found)}",
        stages=tuple(
            PictureStage(name=part.name, blocks=part.blocks, notes=_notes(part)) for part in parts
        ),
        cut_labels={cut.tensor.name: human_bytes(cut.bytes) for cut in found.cuts},
        output="probabilities" if manifest.softmax else "logits",
        badge="UNTRAINED WEIGHTS" if found.untrained else None,
    )


def network_line(found: Inspection) -> str:
    """The network in a line: streams, depth, parameters, operations."""
    spec, counts = found.manifest.spec, found.counts
    size = "x".join(map(str, spec.image_size))
    streams = "1 stream" if spec.streams == 1 else f"{spec.streams} streams"
    if spec.members > 1:
        streams = f"an ensemble of {spec.members} single-stream networks"
    return (
        f"{streams}, depth {counts.depth}, {counts.parameters_fused / 1e6:.3f} M parameters fused, "
        f"{counts.flop_fused / 1e9:.2f} GFLOP at {size}"
    )


def batch_text(found: Inspection) -> str:
    """Images per run: ``1``, or ``1:2:4`` where it is a range."""
    batch = found.manifest.batch
    return f"{batch.min}:{batch.opt}:{batch.max}" if batch.dynamic else str(batch.min)


def _target(found: Inspection) -> str:
    manifest = found.manifest
    kind = manifest.backend if isinstance(manifest, EngineManifest) else f"opset {manifest.opset}"
    return f"{kind}, {manifest.precision}, batch {batch_text(found)}"


def _notes(part: Part) -> tuple[str, ...]:
    notes = [part.device] if part.device else []
    if part.kernels is not None:
        notes.append(f"{part.kernels} kernels")
        if part.streams is not None and part.streams > 1:
            notes[-1] += f" in {part.streams} streams"
    elif part.kinds is not None:
        notes.append(f"{sum(part.kinds.values())} operators")
    return tuple(notes)
