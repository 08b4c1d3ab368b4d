"""The four schedules of one network on one backend, as engines.

whole-one-stream   one engine, no auxiliary streams (TensorRT)
whole              one engine, as many streams as the backend likes
split-one-device   an engine per stage, all on one device
split              an engine per stage, spread over all devices (where there are several)

On a CPU the first is the second, and the last two are one: `split-one-device`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.result import Absence
from parnet_deploy.bundle import EngineBundle, EngineManifest, open_model, resolve_model
from parnet_deploy.engine import BuildOptions, ProviderChoice, build_engine, make_builder
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


def enter(
    engine: EngineBundle,
    images: Path,
    folder: Path,
    devices: Sequence[str],
    *,
    siblings: bool,
    progress: Progress = lambda step: None,
) -> Entered:
    """An engine as a contestant, and beside it the same model in the other schedules.

    Args:
        engine: the engine; it takes part as it is.
        images: what contestants of its network are fed.
        folder: where the others are built.
        devices: where its backend may run.
        siblings: whether the others take part, too.
        progress: called with a line at each step.
    """
    own = schedule_of(engine.manifest)
    contestants = [describe_engine(engine, own, images)]
    absent = []
    others = schedules(engine.manifest.backend, devices) if siblings else ()
    for schedule in others:
        if schedule.name == own.name:
            continue
        try:
            built = _build(engine, schedule, folder, progress)
        except ParnetDeployError as exc:
            name = contestant_name(engine.manifest, schedule)
            network = engine.manifest.spec.name
            absent.append(Absence(name=name, network=network, reason=str(exc)))
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
        settings={"schedule": schedule.name, "backend": manifest.backend},
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
    """Options that build the same engine in another schedule."""
    recorded, target = manifest.options, manifest.target
    flags = recorded.get("builder_flags", ())
    options = BuildOptions(
        threads=int(recorded.get("intra_op_num_threads", 0)),
        tf32="TF32" in flags,
        optimization_level=recorded.get("builder_optimization_level"),
        aux_streams=schedule.aux_streams,
    )
    if manifest.backend == "onnxruntime":
        options = replace(options, provider=_provider(target))
    if manifest.backend == "tensorrt-rtx":
        capabilities = tuple(
            cc for cc in target.get("compute_capabilities", ()) if not str(cc).endswith("+")
        )
        options = replace(options, compute_capabilities=capabilities)
    numbers = tuple(
        int(device.removeprefix("cuda:")) for device in schedule.devices if device != "cpu"
    )
    return replace(options, devices=numbers)


def _provider(target: Any) -> ProviderChoice:
    return "cuda" if target.get("provider") == "cuda" else "cpu"


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
    name = f"{engine.path.resolve().name}-{schedule.name}"
    return build_engine(model, folder / name, builder, split=schedule.split, force=True)
