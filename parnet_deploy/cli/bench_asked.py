"""What ``parnet-deploy bench`` was asked to measure, and how it becomes engines and contestants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args

from parnet_deploy.bench.benchmark import Labelled
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.networks import model_engines, variant_engines
from parnet_deploy.bench.entries.preparing import timm_in_process
from parnet_deploy.bench.entries.timm_networks import TIMM_NETWORKS, TimmRequest
from parnet_deploy.bench.peers import PEERS, find_peer
from parnet_deploy.bench.report.paper import networks as paper_networks
from parnet_deploy.bench.result import Absence, Settings
from parnet_deploy.bundle import (
    EngineBundle,
    find_bundles,
    is_engine,
    open_engine_bundle,
    open_model,
)
from parnet_deploy.cli.build_engine import ENGINES
from parnet_deploy.cli.console import progress
from parnet_deploy.cli.options import parse_choice
from parnet_deploy.data import open_samples
from parnet_deploy.engine import BuildOptions, choose_backend, make_builder
from parnet_deploy.errors import BuildError, EngineError, UsageError
from parnet_deploy.spec import Backend, variant
from parnet_deploy.spec.precision import QUANTISED, Precision
from parnet_deploy.spec.quantisation import Scheme

UNFUSED = "l"
"""The network that the paper's table 3 has unfused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is to be measured, as it was asked for.

    Attributes:
        subjects: bundles that were named.
        variants: names of networks.
        backends: what models and variants are built with; none: the fastest that works here for
            their precision.
        against: names of peers.
        precisions: of the variants' graphs.
        paper: lay the figures out like the paper's.
        gpus: that split engines may use; none: all.
        schedules: measure other schedules of each engine, too.
        data: images with labels that everybody answers; None: noise.
        data_images: how many of them at most.
        hold_out: part of them that is the test split, where they are not split.
        calibrate: images that variants are quantised on.
        floor: say what the device allows.
    """

    subjects: tuple[Path, ...]
    variants: tuple[str, ...]
    backends: tuple[Backend, ...] = ()
    against: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ("fp32",)
    paper: bool = False
    gpus: tuple[int, ...] = ()
    schedules: bool = True
    data: str | None = None
    data_images: int = 256
    hold_out: float | None = None
    calibrate: str | None = None
    floor: bool = False

    @property
    def networks(self) -> tuple[str, ...]:
        """Variants: those that were named, or all that the paper's tables need."""
        if self.paper and not self.variants and not self.subjects:
            return paper_networks()
        return self.variants

    @property
    def peers(self) -> tuple[str, ...]:
        """Peers: those that were named, or for the paper's table 3 what is unfused."""
        return self.against or ("onnxruntime",) * self.paper

    @property
    def networks_of_peers(self) -> tuple[str, ...]:
        """Networks that the peers take part in; empty means all."""
        return (UNFUSED,) if self.paper and not self.against else ()


def find(asked: Asked) -> tuple[Path, ...]:
    """The bundles that were named, each of which is one, or those under ``engines/``.

    Raises:
        UsageError: there is none, or nothing to quantise variants on.
    """
    for name in asked.networks:
        variant(name)
    quantised = [name for name in asked.precisions if name in QUANTISED]
    if quantised and asked.networks and asked.calibrate is None:
        raise UsageError(
            f"variants in {', '.join(quantised)} are quantised on images: name some with "
            "--calibrate, such as a folder"
        )
    paths = asked.subjects or (() if asked.networks else tuple(find_bundles(ENGINES)))
    if not paths and not asked.networks:
        raise UsageError(
            f"there is no engine under {ENGINES}/; build one with 'parnet-deploy build-engine', "
            "name one, or give --variants"
        )
    for path in paths:
        is_engine(path)
    return paths


def build_engines(
    asked: Asked,
    paths: Sequence[Path],
    folder: Path,
    settings: Settings,
) -> tuple[tuple[EngineBundle, ...], tuple[Absence, ...]]:
    """All engines, those of models and variants built now, and those that could not be built.

    Raises:
        BundleError: a bundle that was named is damaged.
        MissingDependencyError: what exports variants is not installed.
    """
    given: list[EngineBundle] = []
    absent: list[Absence] = []

    def build(name: str, backend: Backend, make: Callable[[], Sequence[EngineBundle]]) -> None:
        try:
            given.extend(make())
        except (BuildError, EngineError) as exc:
            absent.append(Absence(name=backend, network=name, reason=str(exc)))
            progress(f"left out: {name} with {backend}: {exc}")

    def chosen(name: str, precision: str, scheme: Scheme | None = None) -> tuple[Backend, ...]:
        try:
            return _chosen(asked, precision, scheme)
        except EngineError as exc:  # nothing that works here runs such graphs
            absent.append(Absence(name="auto", network=name, reason=str(exc)))
            progress(f"left out: {name} in {precision}: {exc}")
            return ()

    for path in paths:
        if is_engine(path):
            given.append(open_engine_bundle(path))
            continue
        model = open_model(path)
        quantisation = model.manifest.quantisation
        scheme = None if quantisation is None else quantisation.scheme
        for backend in chosen(model.manifest.spec.name, model.manifest.precision, scheme):
            make = partial(model_engines, model, (backend,), folder, progress=progress)
            build(model.manifest.spec.name, backend, make)
    variants = (
        (precision, name, backend)
        for precision, name in product(asked.precisions, asked.networks)
        for backend in chosen(name, precision)
    )
    for precision, name, backend in variants:
        make = partial(
            variant_engines,
            (name,),
            (backend,),
            folder / precision,
            batch=settings.batch,
            precision=precision,
            calibrate=asked.calibrate,
            progress=progress,
        )
        build(name, backend, make)
    return tuple(given), tuple(absent)


def open_labelled(asked: Asked) -> Labelled | None:
    """The images with labels that were named.

    Raises:
        UsageError: there is no such data set.
        DataError: it cannot be used.
    """
    if asked.data is None:
        return None
    split = open_samples(asked.data, "test", hold_out=asked.hold_out)
    return Labelled(split=split, count=asked.data_images)


def prepare_timm(
    asked: Asked, folder: Path, settings: Settings
) -> tuple[tuple[Contestant, ...], tuple[Absence, ...]]:
    """The paper's other networks on each backend, and why some are absent."""
    found: list[Contestant] = []
    absent: list[Absence] = []
    for name in TIMM_NETWORKS if asked.paper else ():
        for backend in _chosen(asked):
            progress(f"prepare: {name} with {backend}")
            request = TimmRequest(
                name=name,
                workspace=str(folder / "timm"),
                backend=backend,
                device=_device_of(backend),
                batch=settings.batch,
                seed=settings.seed,
            )
            made = timm_in_process(request)
            if isinstance(made, Contestant):
                found.append(made)
            else:
                absent.append(made)
    return tuple(found), tuple(absent)


def _chosen(
    asked: Asked, precision: str = "fp32", scheme: Scheme | None = None
) -> tuple[Backend, ...]:
    """The backends that were named, or the fastest here for graphs of a precision and a scheme."""
    return asked.backends or (choose_backend(precision, scheme).backend,)


def _device_of(backend: Backend) -> str:
    """Where a backend's engines run here if nothing else is said."""
    return make_builder(backend, BuildOptions(), split=False).devices[0]


def title_of(asked: Asked, paths: Sequence[Path], settings: Settings) -> str:
    """What is measured, in one line."""
    names = [path.resolve().name for path in paths]
    names += [f"ParNet-{name.upper()}" for name in asked.networks]
    title = "the paper's tables 2, 3 and 11" if asked.paper else ", ".join(names)
    title += f", batch {settings.batch}"
    return title + (f", against {', '.join(asked.against)}" if asked.against else "")


def parse_names(text: str | None) -> tuple[str, ...]:
    """Words with commas between, each once."""
    words = (word.strip() for word in (text or "").split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def parse_backends(text: str | None) -> tuple[Backend, ...]:
    """Backends with commas between, each of which there is."""
    return tuple(
        next(known for known in get_args(Backend) if known == name)
        for name in (parse_choice("--backends", name, Backend) for name in parse_names(text))
    )


def parse_peers(text: str | None) -> tuple[str, ...]:
    """Names of peers, each of which there is."""
    names = tuple(PEERS) if text == "all" else parse_names(text)
    return tuple(find_peer(name).name for name in names)


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Precisions with commas between, each of which there is.

    Raises:
        UsageError: one is none, or there is not one.
    """
    names = parse_names(text)
    if not names:
        raise UsageError(f"--precisions is one or several of {', '.join(get_args(Precision))}")
    return tuple(
        next(known for known in get_args(Precision) if known == name)
        for name in (parse_choice("--precisions", name, Precision) for name in names)
    )
