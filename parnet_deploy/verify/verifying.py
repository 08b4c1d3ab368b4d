"""verify: the ladder and the probes of a bundle."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from parnet_deploy.bundle import (
    CHECKPOINT,
    EngineBundle,
    EngineManifest,
    ModelBundle,
    ModelManifest,
    versions,
)
from parnet_deploy.errors import (
    MissingDependencyError,
    ParnetDeployError,
    TargetError,
    UsageError,
    VerificationError,
)
from parnet_deploy.net import BlockGraph, DeployParNet, ParNet, fuse, load_checkpoint
from parnet_deploy.quantise.images import CalibrationImages, open_images
from parnet_deploy.runtime import Runner, open_runner
from parnet_deploy.spec import Array, layout
from parnet_deploy.spec.precision import AGREEMENT
from parnet_deploy.verify.building import Construction, examine
from parnet_deploy.verify.failing import failures_of
from parnet_deploy.verify.inputs import Inputs, batches, from_folder, from_noise, from_npz
from parnet_deploy.verify.judge import Ruling
from parnet_deploy.verify.ladder import Step, climb
from parnet_deploy.verify.opening import is_emulated, open_engine, open_stages, open_whole
from parnet_deploy.verify.options import VerifyOptions
from parnet_deploy.verify.probes import Subject, not_probed, probe
from parnet_deploy.verify.ranges import UNSEEN, same_images
from parnet_deploy.verify.result import ProbeResult, RungResult, Verification
from parnet_deploy.verify.rungs import Rung, RunnerRung, TorchRung
from parnet_deploy.verify.subjects import Subjects, find_subjects
from parnet_deploy.verify.tolerances import (
    ENGINE_RUNGS,
    ROUNDED_RUNGS,
    RungName,
    allowed_in_words,
    near_of,
    tolerances_of,
)

Progress = Callable[[str], None]
Opener = Callable[[EngineBundle], Runner]

TOOLS = ("parnet-deploy", "torch", "onnxruntime-gpu", "onnxruntime", "openvino", "ncnn", "numpy")

PROBE_SEED = 1_000_003
"""Seed of the noise that fills up a probe's images: other noise than the ladder's by default."""


def verify(
    path: Path,
    options: VerifyOptions | None = None,
    *,
    opener: Opener = open_runner,
    progress: Progress = lambda step: None,
) -> Verification:
    """Climb the ladder with a bundle's network, and probe its engines.

    Args:
        path: an engine bundle; or a model bundle, which is climbed as far as its stages.
        options: what to verify with.
        opener: opens an engine.
        progress: called with a line at each step.

    Returns:
        What was found. That something failed is a result, not an exception.

    Raises:
        BundleError: a bundle is missing or damaged.
        VerificationError: the model bundle of an engine is not to be found, or its checkpoint is
            not the network of its manifest.
        UsageError: options that do not fit the bundles.
        DataError: an .npz or calibration images that cannot be used.
        ImageError: an image cannot be used.
    """
    options = options or VerifyOptions()
    progress("check: every file against its manifest")
    subjects = find_subjects(path, model=options.model, sibling=options.sibling)
    manifest = subjects.model.manifest
    calibration = _calibration(subjects.model, options, progress)
    inputs = _inputs(manifest, options, calibration)
    manifests = {rung: engine.manifest for rung, engine in subjects.engines.items()}
    tolerances = tolerances_of(manifest, manifests, options.tolerances)
    ruling = _ruling(manifest, manifests, options)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parnet-verify-")))
        progress("open: every form of the network")
        fused = fuse(_read_checkpoint(subjects.model), manifest.form)
        steps = _steps(subjects, scratch, opener, fused)
        for step in steps:
            if step.rung is not None:
                stack.callback(step.rung.close)
        progress("read: what was built, from the files")
        built = _examine(subjects, fused, inputs, calibration, options)
        progress(f"climb: {inputs.description}")
        fed = batches(inputs, manifest.preprocessing, subjects.batch.opt)
        rungs = climb(steps, fed, tolerances, layout(manifest.spec), ruling)
        progress("probe: what an engine must keep to whatever its weights are")
        probes = _probe(subjects, steps, inputs, tolerances)
    return _verification(subjects, inputs, options, rungs, probes, built)


def _calibration(
    model: ModelBundle, options: VerifyOptions, progress: Progress
) -> CalibrationImages | None:
    """The images that a quantised network was calibrated on, where they are named.

    Raises:
        UsageError: it is not quantised, or there are no such images.
    """
    if options.calibrate is None:
        return None
    manifest = model.manifest
    if manifest.quantisation is None:
        raise UsageError(
            f"{model.path} is {manifest.precision} and was calibrated on nothing; leave "
            "--calibrate out, and feed images with --images or --npz"
        )
    progress(f"read: what it was calibrated on, {options.calibrate}")
    return open_images(
        options.calibrate,
        manifest.preprocessing,
        limit=manifest.quantisation.calibration.images,
        classes=model.labels,
        outputs=manifest.spec.classes,
    )


def _ruling(
    manifest: ModelManifest, engines: Mapping[RungName, EngineManifest], options: VerifyOptions
) -> Ruling:
    """What a precision changes in how rungs are judged."""
    near = near_of(manifest, options.tolerances)
    if manifest.quantisation is None:
        return Ruling(near=near)
    told = (options.images, options.npz, options.calibrate) != (None, None, None)
    equalised = manifest.quantisation.equalised
    return Ruling(
        near=near,
        unlike={} if told else dict.fromkeys(ROUNDED_RUNGS, UNSEEN),
        scaled=equalised and manifest.spec.activation == "relu",
        engines=engines,
        shares=dict.fromkeys(ROUNDED_RUNGS, AGREEMENT[manifest.precision]),
    )


def _examine(
    subjects: Subjects,
    fused: DeployParNet,
    inputs: Inputs,
    calibration: CalibrationImages | None,
    options: VerifyOptions,
) -> Construction:
    manifest = subjects.model.manifest
    fed: Inputs | None = inputs
    if calibration is not None:
        fed = Inputs(description=calibration.source, images=calibration.array())
    elif options.images is None and options.npz is None:
        fed = None
    size = subjects.batch.opt
    found = examine(
        subjects,
        fused,
        None if fed is None else batches(fed, manifest.preprocessing, size),
        same=_is_that(manifest, calibration),
    )
    if calibration is None or manifest.quantisation is None:
        return found
    return replace(found, checks=(*found.checks, same_images(manifest.quantisation, calibration)))


def _is_that(manifest: ModelManifest, calibration: CalibrationImages | None) -> bool:
    """Whether these are the images that ranges were found on, and found by looking once."""
    if calibration is None or manifest.quantisation is None:
        return False
    recorded = manifest.quantisation.calibration
    return recorded.method != "qat" and recorded.sha256 == calibration.sha256


def _inputs(
    manifest: ModelManifest, options: VerifyOptions, calibration: CalibrationImages | None
) -> Inputs:
    preprocessing = manifest.preprocessing
    samples = options.samples_for(preprocessing.size)
    if options.images is not None:
        return from_folder(options.images, preprocessing, samples=samples)
    if options.npz is not None:
        return from_npz(options.npz, preprocessing, samples=samples)
    if calibration is not None:
        taken = calibration.take(range(min(samples, calibration.count)), "the first")
        return Inputs(
            description=f"{taken.count} of {calibration.count} images that it was calibrated on "
            f"({calibration.source})",
            images=taken.array(),
        )
    return from_noise(preprocessing, seed=options.seed, samples=samples)


def _steps(subjects: Subjects, scratch: Path, opener: Opener, fused: DeployParNet) -> list[Step]:
    """Open every rung; those that cannot be opened say why."""
    model = subjects.model
    steps = _torch_steps(model, fused)
    how = "ONNX Runtime, CPU"
    if is_emulated(model.manifest):
        how += f", {model.manifest.precision} emulated: computed in float32, every rounding made"
    steps += [
        _open(
            "onnx-whole",
            f"whole graph, {how}",
            lambda: open_whole(model, scratch / "whole"),
        ),
        _open(
            "onnx-stages",
            f"{len(model.manifest.stages)} stage graphs joined, {how}",
            lambda: open_stages(model, scratch / "stages"),
        ),
    ]
    for rung in ENGINE_RUNGS:
        if reason := subjects.absent.get(rung):
            steps.append(Step(name=rung, what="no engine", reason=reason))
            continue
        engine = subjects.engines[rung]
        what = f"{engine.path.name}: {engine.manifest.backend} on {_devices(engine)}"
        if reason := subjects.foreign.get(rung):
            steps.append(Step(name=rung, what=what, reason=reason, fault=True, foreign=True))
            continue
        opening = partial(open_engine, engine, model, scratch / rung, opener)
        steps.append(_open(rung, what, opening, may_be_elsewhere=True))
    return steps


def _torch_steps(model: ModelBundle, fused: DeployParNet) -> list[Step]:
    """The training form in float64, and the deploy form in both precisions."""
    manifest = model.manifest
    doubled = _read_checkpoint(model).double()
    fused_doubled = fuse(doubled, manifest.form)
    (output,) = (spec.name for spec in manifest.outputs)
    forms: tuple[tuple[RungName, str, BlockGraph], ...] = (
        ("training-f64", "training form, torch, float64", doubled),
        ("fused-f64", "fused, torch, float64", fused_doubled),
        ("fused-f32", "fused, torch, float32", fused),
    )
    return [
        Step(name=name, what=what, rung=TorchRung(form, output=output, deploy=form is not doubled))
        for name, what, form in forms
    ]


def _read_checkpoint(model: ModelBundle) -> ParNet:
    trained = load_checkpoint(model.file(CHECKPOINT)).model
    if trained.spec != model.manifest.spec:
        raise VerificationError(
            f"{model.path} holds a checkpoint of another network than its manifest describes "
            f"({trained.spec} instead of {model.manifest.spec}); export it again"
        )
    return trained


def _open(
    name: RungName, what: str, opening: Callable[[], Rung], *, may_be_elsewhere: bool = False
) -> Step:
    """Open a rung. An engine may be for another machine; a graph that does not load is at fault."""
    try:
        return Step(name=name, what=what, rung=opening())
    except (TargetError, MissingDependencyError) as exc:
        return Step(name=name, what=what, reason=str(exc), fault=not may_be_elsewhere)
    except ParnetDeployError as exc:
        return Step(name=name, what=what, reason=f"it does not open: {exc}", fault=True)


def _devices(engine: EngineBundle) -> str:
    return ", ".join(dict.fromkeys(stage.device for stage in engine.manifest.stages))


def _probe(
    subjects: Subjects,
    steps: Sequence[Step],
    inputs: Inputs,
    tolerances: Mapping[RungName, float],
) -> tuple[ProbeResult, ...]:
    """Probe every engine; where there is none, the whole graph."""
    probed = tuple(subjects.engines) or ("onnx-whole",)
    images = _different_images(inputs, subjects)
    results: list[ProbeResult] = []
    for step in steps:
        if step.name not in probed:
            continue
        if isinstance(step.rung, RunnerRung):
            subject = Subject(
                runner=step.rung.runner,
                images=images,
                batch=subjects.batch,
                tolerance=tolerances[step.name],
            )
            results += probe(subject, step.name)
        else:
            results += not_probed(step.name)  # its rung says why it does not open
    return tuple(results)


def _different_images(inputs: Inputs, subjects: Subjects) -> Array:
    """As many different images as a probe needs: those given, then noise."""
    count = max(2, subjects.batch.max)
    given = np.unique(inputs.images[:count], axis=0)
    preprocessing = subjects.model.manifest.preprocessing
    noise = from_noise(preprocessing, seed=PROBE_SEED, samples=count).images
    return np.concatenate([given, noise])[:count]


def _verification(
    subjects: Subjects,
    inputs: Inputs,
    options: VerifyOptions,
    rungs: tuple[RungResult, ...],
    probes: tuple[ProbeResult, ...],
    built: Construction,
) -> Verification:
    manifest = subjects.model.manifest
    failures = failures_of(rungs, built.checks, probes, options.required)
    return Verification(
        bundle=str(subjects.given),
        model=str(subjects.model.path),
        name=manifest.name,
        spec=manifest.spec,
        inputs=inputs.description,
        images=len(inputs.images),
        rungs=rungs,
        probes=probes,
        required=options.required,
        notes=manifest.warnings,
        tools=versions(*TOOLS),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        passed=not failures,
        failures=failures,
        precision=manifest.precision,
        allowed=allowed_in_words(manifest),
        types=built.types,
        checks=built.checks,
        ranges=built.ranges,
    )
