"""The four schedules of one network on one backend, as engines.

whole-one-stream   one engine, no auxiliary streams (TensorRT)
whole              one engine, as many streams as the backend likes
split-one-device   an engine per stage, all on one device
split              an engine per stage, spread over all devices (where there are several)

On a CPU the first is the second, and the last two are one: `split-one-device`.
Siblings of an engine are built with the options that its manifest records.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.result import Absence
from parnet_deploy.bundle import EngineBundle, EngineManifest, open_model, resolve_model
from parnet_deploy.engine import BuildOptions, build_engine, make_builder, recorded_options
from parnet_deploy.errors import BuildError, ParnetDeployError

ScheduleName = Literal["whole-one-stream", "whole", "split-one-device", "split"]

Progress = Callable[[str], None]

_WORDS: dict[ScheduleName, str] = {
    "whole-one-stream": "whole, one stream",
    "whole": "whole",
    "split-one-device": "split",
    "split": "split",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A way to run a network.

    Attributes:
        name: which of the four.
        devices: where its stages run.
        aux_streams: limit of a plan's auxiliary streams, None where the backend decides.
    """

    name: ScheduleName
    devices: tuple[str, ...]
    aux_streams: int | None = None

    @property
    def split(self) -> bool:
        """Whether it has an engine per stage."""
        return self.name.startswith("split")


class Entered(NamedTuple):
    """Engines that take part, and those that could not be made."""

    contestants: tuple[Contestant, ...]
    absent: tuple[Absence, ...]


def schedules(backend: str, devices: Sequence[str]) -> tuple[Schedule, ...]:
    """All schedules that a backend has on these devices."""
    first = (devices[0],)
    found = [
        Schedule(name="whole", devices=first),
        Schedule(name="split-one-device", devices=first),
    ]
    if backend.startswith("tensorrt"):
        found.insert(0, Schedule(name="whole-one-stream", devices=first, aux_streams=0))
    if len(devices) > 1:
        found.append(Schedule(name="split", devices=tuple(devices)))
    return tuple(found)


def schedule_of(manifest: EngineManifest) -> Schedule:
    """Which schedule an engine is."""
    devices = tuple(dict.fromkeys(stage.device for stage in manifest.stages))
    if manifest.split:
        name: ScheduleName = "split" if len(devices) > 1 else "split-one-device"
        return Schedule(name=name, devices=devices)
    aux_streams = manifest.options.get("max_aux_streams")
    if aux_streams == 0:
        return Schedule(name="whole-one-stream", devices=devices, aux_streams=0)
    return Schedule(name="whole", devices=devices)


class Identity(NamedTuple):
    """What makes two engines the same for a benchmark: equals are measured once."""

    model: str
    backend: str
    schedule: ScheduleName
    devices: frozenset[str]
    options: BuildOptions


def identity(manifest: EngineManifest, schedule: Schedule) -> Identity:
    """That of an engine that is built like another one, in its own or in another schedule."""
    return Identity(
        model=manifest.model.manifest_sha256,
        backend=manifest.backend,
        schedule=schedule.name,
        devices=frozenset(schedule.devices),
        options=replace(build_options(manifest, schedule), devices=()),
    )


def build_siblings(
    engine: EngineBundle,
    images: Path,
    folder: Path,
    devices: Sequence[str],
    *,
    entered: set[Identity],
    progress: Progress = lambda step: None,
) -> Entered:
    """The model of an engine in the backend's other schedules, built as the engine was.

    Args:
        engine: the engine.
        images: what contestants of its network are fed.
        folder: where the others are built.
        devices: where its backend may run.
        entered: engines that take part already and are not built again; those that are built, or
            cannot be, are added.
        progress: called with a line at each step.
    """
    manifest = engine.manifest
    contestants, absent = [], []
    for schedule in schedules(manifest.backend, devices):
        same = identity(manifest, schedule)
        if same in entered or schedule.name == schedule_of(manifest).name:
            continue
        entered.add(same)
        try:
            built = _build(engine, schedule, folder, progress)
        except ParnetDeployError as exc:
            name = contestant_name(manifest, schedule)
            absent.append(Absence(name=name, network=manifest.spec.name, reason=str(exc)))
            continue
        contestants.append(describe_engine(built, schedule, images))
    return Entered(tuple(contestants), tuple(absent))


def describe_engine(engine: EngineBundle, schedule: Schedule, images: Path) -> Contestant:
    """An engine as a contestant."""
    manifest = engine.manifest
    return Contestant(
        name=contestant_name(manifest, schedule),
        group="ours",
        network=manifest.spec.name,
        opener="engine",
        path=str(engine.path.resolve()),
        images=str(images),
        devices=schedule.devices,
        settings={
            "schedule": schedule.name,
            "backend": manifest.backend,
            "precision": manifest.precision,
        },
    )


def contestant_name(manifest: EngineManifest, schedule: Schedule) -> str:
    """``tensorrt fp16 split on cuda:0,1``."""
    words: str = manifest.backend
    if manifest.precision != "fp32":
        words += f" {manifest.precision}"
    provider = manifest.target.get("provider")
    if provider == "cuda":
        words += " cuda"
    words += f" {_WORDS[schedule.name]}"
    if schedule.split and any(stage.name == "stem" for stage in manifest.stages):
        words += ", stem shared"
    if len(schedule.devices) > 1:
        words += " on cuda:" + ",".join(d.removeprefix("cuda:") for d in schedule.devices)
    return words


def build_options(manifest: EngineManifest, schedule: Schedule) -> BuildOptions:
    """Options that build the same engine in another schedule.

    A limit of auxiliary streams is kept, but for a limit of none: that is a schedule of its own.
    """
    recorded = recorded_options(manifest)
    limit = schedule.aux_streams
    if limit is None and (recorded.aux_streams or (schedule.split and manifest.split)):
        limit = recorded.aux_streams
    numbers = tuple(
        int(device.removeprefix("cuda:")) for device in schedule.devices if device != "cpu"
    )
    return replace(recorded, aux_streams=limit, devices=numbers)


def _build(
    engine: EngineBundle, schedule: Schedule, folder: Path, progress: Progress
) -> EngineBundle:
    manifest = engine.manifest
    path = resolve_model(manifest.model, engine.path)
    model = open_model(path, check=False)
    if model.manifest_sha256 != manifest.model.manifest_sha256:
        raise BuildError(f"{path} is another model than {engine.path} was built from")
    builder = make_builder(
        manifest.backend, build_options(manifest, schedule), split=schedule.split
    )
    progress(f"build: {contestant_name(manifest, schedule)}")
    # Engines of one name may come from several folders.
    below = tempfile.mkdtemp(prefix=f"{schedule.name}-", dir=folder)
    final = Path(below) / f"{engine.path.resolve().name}-{schedule.name}"
    return build_engine(model, final, builder, split=schedule.split)
