"""A whole benchmark: who takes part, what is right, the contest, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parnet_deploy.bench.conditions import conditions, look, with_weights
from parnet_deploy.bench.contest.holding import hold_contest
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.images import images_for, read_images, write_images, write_labelled
from parnet_deploy.bench.entries.preparing import prepare_in_process, reference_in_process
from parnet_deploy.bench.entries.reference import Question
from parnet_deploy.bench.entries.schedules import (
    Identity,
    build_siblings,
    describe_engine,
    identity,
    schedule_of,
)
from parnet_deploy.bench.floor import floor_on
from parnet_deploy.bench.outcomes import outcomes
from parnet_deploy.bench.peers import Preparation, find_peer
from parnet_deploy.bench.peers.base import Kind
from parnet_deploy.bench.peers.base import Precision as PeerPrecision
from parnet_deploy.bench.report.wording import sentences
from parnet_deploy.bench.result import Absence, BenchResult, Outcome, Settings
from parnet_deploy.bench.tolerances import Graph
from parnet_deploy.bundle import CHECKPOINT, EngineBundle, ModelBundle, open_model, resolve_model
from parnet_deploy.data import Split, match_labels
from parnet_deploy.errors import BuildError, BundleError, RunnerError, UsageError
from parnet_deploy.roofline import PRECISIONS
from parnet_deploy.runtime.machine import cuda_driver

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labelled:
    """Images that contestants are judged by.

    Attributes:
        split: the data set.
        count: how many of its images at most, evenly spread over it.
    """

    split: Split
    count: int

    @property
    def images(self) -> int:
        """How many there are."""
        return min(self.count, len(self.split.samples))


@dataclass(frozen=True, kw_only=True, slots=True)
class Programme:
    """What is to be measured.

    Attributes:
        title: what the result is called.
        command: what makes it again.
        engines: engines of this project; the first of each network is the reference of it.
        against: names of peers.
        networks: those that the peers take part in; empty means all.
        others: contestants that are prepared already.
        absent: who was asked for, and could not be prepared.
        gpus: GPUs that split engines may use; empty means all there are.
        schedules: whether each engine's model takes part in its backend's other schedules, too.
        floor: whether the physical floor is computed.
        labelled: images with labels that everybody answers, or None: noise.
        settings: how is measured.
    """

    title: str
    command: str
    engines: tuple[EngineBundle, ...]
    against: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    others: tuple[Contestant, ...] = ()
    absent: tuple[Absence, ...] = ()
    gpus: tuple[int, ...] = ()
    schedules: bool = True
    floor: bool = False
    labelled: Labelled | None = None
    settings: Settings


def run_benchmark(
    programme: Programme, workspace: Path, progress: Progress = lambda step: None
) -> BenchResult:
    """Measure.

    Args:
        programme: what.
        workspace: an empty folder for what is built on the way.
        progress: called with a line at each step.

    Raises:
        UsageError: an engine does not take the batch, or a peer's name is unknown.
        RunnerError: nobody could be measured.
    """
    check_engines(programme)
    entries = _Entries(programme, workspace, progress)
    for engine in programme.engines:
        entries.enter_engine(engine)
    for engine in programme.engines if programme.schedules else ():
        entries.enter_siblings(engine)
    for engine in programme.engines:
        entries.enter_peers(engine)
    entries.close()
    before = look()
    contest = hold_contest(
        [*entries.contestants.values(), *programme.others],
        programme.settings,
        workspace,
        progress=progress,
    )
    if not contest.records:
        reasons = "; ".join(f"{absence.name}: {absence.reason}" for absence in contest.absent)
        raise RunnerError(f"nobody could be measured: {reasons}")
    references = entries.references | _own_references(programme.others)
    measured = outcomes(
        contest.records, programme.settings.batch, references=references, graphs=entries.graphs
    )
    found = tuple(entries.with_doubt(outcome) for outcome in measured.outcomes)
    if programme.floor:
        found = tuple(entries.with_floor(outcome) for outcome in found)
    result = BenchResult(
        title=programme.title,
        command=programme.command,
        settings=programme.settings,
        conditions=with_weights(conditions(before, look()), programme.engines),
        outcomes=found,
        absent=(*programme.absent, *entries.absent, *contest.absent, *measured.absent),
        images=_images_in_words(programme.labelled),
    )
    return replace(result, verdict=sentences(result))


def _images_in_words(labelled: Labelled | None) -> str:
    return "noise" if labelled is None else f"the test images of {labelled.split.name}"


def _own_references(others: Sequence[Contestant]) -> dict[str, Path]:
    """What is right of contestants that bring it along."""
    return {
        contestant.key: Path(contestant.settings["reference"])
        for contestant in others
        if "reference" in contestant.settings
    }


def check_engines(programme: Programme) -> None:
    """Refuse what cannot be measured, before anything is built.

    Raises:
        UsageError: an engine is named twice, or does not take the batch, or there are fewer
            images than a run takes.
    """
    size = programme.settings.batch
    if programme.labelled is not None and programme.labelled.images < size:
        raise UsageError(
            f"a run takes {size} images, and there are {programme.labelled.images} with labels"
        )
    seen: set[Path] = set()
    for engine in programme.engines:
        if engine.path.resolve() in seen:
            raise UsageError(f"{engine.path} is named twice; each engine takes part once")
        seen.add(engine.path.resolve())
        takes = engine.manifest.batch
        if not takes.min <= size <= takes.max:
            raise UsageError(
                f"{engine.path} takes {takes.min} to {takes.max} images per run, not {size}; "
                "export its model with another --batch"
            )


_PeerKey = tuple[str, str, str, str]
"""Network, device, peer, precision."""


class _Entries:
    """Contestants as they are entered, and what is right of them."""

    def __init__(self, programme: Programme, workspace: Path, progress: Progress) -> None:
        self._programme = programme
        self._workspace = workspace
        self._progress = progress
        self._images: dict[str, Path] = {}
        self._answers: dict[str, Path | str] = {}
        self._unknown: dict[str, str] = {}
        self._entered: set[Identity] = set()
        self._peers: set[_PeerKey] = set()
        self._lacking: dict[_PeerKey, str] = {}
        self.contestants: dict[str, Contestant] = {}
        self.absent: list[Absence] = []
        self.references: dict[str, Path] = {}
        self.graphs: dict[str, Graph] = {}

    def enter_engine(self, engine: EngineBundle) -> None:
        """An engine that was named: it takes part as it is."""
        schedule = schedule_of(engine.manifest)
        self._entered.add(identity(engine.manifest, schedule))
        self._add(describe_engine(engine, schedule, self._images_of(engine)), engine)

    def enter_siblings(self, engine: EngineBundle) -> None:
        """The same model in other schedules, where those do not take part already."""
        built = build_siblings(
            engine,
            self._images_of(engine),
            self._folder(engine),
            self._devices(engine),
            entered=self._entered,
            progress=self._progress,
        )
        self.absent += built.absent
        for contestant in built.contestants:
            self._add(contestant, engine)

    def enter_peers(self, engine: EngineBundle) -> None:
        """The peers on an engine's network and device, once for all engines of both."""
        model = _model_of(engine)
        device, network = engine.manifest.stages[0].device, engine.manifest.spec.name
        if self._programme.networks and network not in self._programme.networks:
            return
        for name in self._programme.against:
            precision = _peer_precision(name, engine, device)
            key = (network, device, name, precision)
            if key in self._peers:
                continue
            if isinstance(model, str):  # another engine of the network may have one
                self._lacking.setdefault(key, model)
                continue
            self._peers.add(key)
            self._enter_peer(name, engine, model, device, precision)

    def close(self) -> None:
        """Peers of which no engine had a model are absent."""
        for key, reason in self._lacking.items():
            network, _, name, _ = key
            if key not in self._peers:
                self.absent.append(Absence(name=name, network=network, reason=reason))

    def _enter_peer(
        self,
        name: str,
        engine: EngineBundle,
        model: ModelBundle,
        device: str,
        precision: PeerPrecision,
    ) -> None:
        self._progress(f"prepare: {name}")
        made = prepare_in_process(self._preparation(name, engine, model, device, precision))
        if isinstance(made, Absence):
            self.absent.append(made)
            return
        words = "" if precision == "fp32" else f", {precision}"
        self._add(replace(made, name=made.name + words), engine, precision)

    def with_doubt(self, outcome: Outcome) -> Outcome:
        """An outcome that says why its answers could not be compared, where they could not."""
        if (why := self._unknown.get(outcome.contestant.key)) is None:
            return outcome
        said = f"how near its answers are is not known: {why}"
        return replace(outcome, warnings=(*outcome.warnings, said))

    def with_floor(self, outcome: Outcome) -> Outcome:
        """An outcome with the floor of its network on its device, where that is known."""
        graph = self.graphs.get(outcome.contestant.key)
        if graph is None or graph.spec is None or outcome.precision not in PRECISIONS:
            return outcome
        floor = floor_on(
            graph.spec,
            outcome.contestant.devices[0],
            precision=outcome.precision,
            batch=self._programme.settings.batch,
        )
        return replace(outcome, floor=floor)

    def _preparation(
        self,
        name: str,
        engine: EngineBundle,
        model: ModelBundle,
        device: str,
        precision: PeerPrecision,
    ) -> Preparation:
        return Preparation(
            peer=name,
            network=engine.manifest.spec.name,
            model=str(model.path),
            workspace=str(self._folder(engine) / "peers"),
            images=str(self._images_of(engine)),
            device=device,
            batch=self._programme.settings.batch,
            precision=precision,
        )

    def _add(
        self, contestant: Contestant, engine: EngineBundle, precision: str | None = None
    ) -> None:
        while contestant.key in self.contestants:
            contestant = replace(contestant, name=f"{contestant.name}, {engine.path.name}")
        self.contestants[contestant.key] = contestant
        answers = self._answers_of(engine)
        if isinstance(answers, Path):
            self.references[contestant.key] = answers
        else:
            self._unknown[contestant.key] = answers
        manifest = engine.manifest
        self.graphs[contestant.key] = Graph(
            spec=manifest.spec, precision=precision or manifest.precision
        )

    def _folder(self, engine: EngineBundle) -> Path:
        """The workspace of an engine's model."""
        folder = self._workspace / engine.manifest.model.manifest_sha256[:16]
        folder.mkdir(exist_ok=True)
        return folder

    def _images_of(self, engine: EngineBundle) -> Path:
        path = self._folder(engine) / "images.npz"
        if not path.exists():
            settings, labelled = self._programme.settings, self._programme.labelled
            preprocessing = engine.manifest.preprocessing
            if labelled is None:
                count = images_for(settings.batch)
                write_images(path, preprocessing, count=count, seed=settings.seed)
            else:
                labels = engine.labels
                logits = match_labels(labelled.split.labels, labels).logits
                write_labelled(path, preprocessing, labelled.split, logits, count=labelled.count)
        return path

    def _answers_of(self, engine: EngineBundle) -> Path | str:
        """What is right, or why it cannot be known.

        Models of several precisions have one checkpoint, and are asked once.
        """
        model = _model_of(engine)
        if isinstance(model, str):
            self._progress(f"no parity: {model}")
            return model
        weights = model.manifest.files.get(CHECKPOINT)
        digest = weights.sha256 if weights else model.manifest_sha256
        key = f"{digest} {model.manifest.preprocessing}"
        if key not in self._answers:
            self._answers[key] = self._ask(engine, model)
        return self._answers[key]

    def _ask(self, engine: EngineBundle, model: ModelBundle) -> Path | str:
        self._progress(f"reference: {engine.manifest.spec.name} in training form, float64")
        question = Question(
            model=str(model.path),
            images=str(self._images_of(engine)),
            count=len(read_images(self._images_of(engine), "uint8")),
            answers=str(self._folder(engine) / "reference.npy"),
        )
        try:
            return Path(reference_in_process(question).path)
        except BuildError as exc:
            self._progress(f"no parity: {exc}")
            return str(exc)

    def _devices(self, engine: EngineBundle) -> Sequence[str]:
        own = tuple(dict.fromkeys(stage.device for stage in engine.manifest.stages))
        if own[0] == "cpu":
            return own
        numbers: Sequence[int] = self._programme.gpus or [gpu.index for gpu in cuda_driver().gpus]
        return tuple(f"cuda:{number}" for number in numbers) or own


def _peer_precision(name: str, engine: EngineBundle, device: str) -> PeerPrecision:
    """An engine's own precision where the peer has it on that device, otherwise float32."""
    kind: Kind = "cpu" if device == "cpu" else "cuda"
    known = find_peer(name).precisions.get(kind, ())
    return next((p for p in known if p == engine.manifest.precision), "fp32")


def _model_of(engine: EngineBundle) -> ModelBundle | str:
    """The model of an engine, or why it is not at hand."""
    path = resolve_model(engine.manifest.model, engine.path)
    try:
        model = open_model(path, check=False)
    except BundleError as exc:
        return str(exc)
    if model.manifest_sha256 != engine.manifest.model.manifest_sha256:
        return f"{path} is another model than {engine.path} was built from"
    return model
