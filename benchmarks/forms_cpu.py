"""Which deploy form is the fastest on the CPU: ParNet in every form, as engines of one backend.

Each form's engine is whole, and runs in a fresh process in every round, in shuffled order; see
README.md. What a form is, and why all are equal, is in `parnet_deploy.spec.form`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import contest
import numpy as np

from parnet_deploy.bundle import Source, open_engine_bundle, versions
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.runtime import open_runner
from parnet_deploy.spec import DeployForm, Preprocessing, default_form, variant
from parnet_deploy.spec.form import IdentityBN, Join, Squeeze

WARM_UP = 3

PACKAGES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
}
"""Backends, and what their engines run in."""


def main() -> None:
    """Build, measure, report."""
    options = parse(sys.argv[1:])
    if options.worker:
        print(json.dumps(work(options.worker, options.iterations)))
        return
    with tempfile.TemporaryDirectory() as folder:
        engines = {name_of(form): build(form, Path(folder), options) for form in forms(options)}
        commands = {name: worker(engine, options) for name, engine in engines.items()}
        rounds = contest.interleave(commands, options.rounds)
    rows = contest.summarise(rounds, reference=next(iter(commands)))
    contest.write(report(options), rows, rounds, images=1)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=PACKAGES, default="onnxruntime")
    parser.add_argument("--variant", default="l")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--worker", type=Path, metavar="ENGINE", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def forms(options: argparse.Namespace) -> Iterator[DeployForm]:
    """Every form in NCHW, the backend's own first: the others are compared with it."""
    own = default_form(options.backend)
    yield own
    for identity, squeeze, join in itertools.product(
        get_args(IdentityBN), get_args(Squeeze), get_args(Join)
    ):
        form = DeployForm(identity_bn=identity, squeeze=squeeze, join=join, layout="nchw")
        if form != own:
            yield form


def name_of(form: DeployForm) -> str:
    """A form in words."""
    layout = "" if form.layout == "nchw" else f", {form.layout}"
    return f"identity {form.identity_bn}, squeeze {form.squeeze}, join {form.join}{layout}"


def build(form: DeployForm, folder: Path, options: argparse.Namespace) -> Path:
    """An engine of the untrained network; latency does not depend on the weights."""
    from parnet_deploy.export import ExportOptions, export_model
    from parnet_deploy.net import initialise

    name = name_of(form).replace(", ", "-").replace(" ", "-")
    spec = variant(options.variant).spec
    model = export_model(
        initialise(spec, seed=0),
        Source(kind="untrained", seed=0),
        folder / f"model-{name}",
        ExportOptions(name=name, preprocessing=Preprocessing(size=spec.image_size), form=form),
    )
    provider = "cpu" if options.backend == "onnxruntime" else "auto"
    builder = make_builder(
        options.backend, BuildOptions(threads=options.threads, provider=provider), split=False
    )
    return build_engine(model, folder / name, builder, split=False).path


def worker(engine: Path, options: argparse.Namespace) -> list[str]:
    """The command that runs an engine."""
    command = [sys.executable, __file__, "--worker", str(engine)]
    return [*command, "--iterations", str(options.iterations)]


def work(path: Path, iterations: int) -> list[float]:
    """Run one engine: latencies in milliseconds, from host memory to host memory."""
    bundle = open_engine_bundle(path)
    latencies = []
    with open_runner(bundle) as runner:
        (images,) = runner.inputs
        noise = np.random.default_rng(0).standard_normal(images.concrete(1))
        feeds = {images.name: noise.astype(images.dtype)}
        for _ in range(WARM_UP):
            runner.run(feeds)
        for _ in range(iterations):
            start = time.perf_counter()
            runner.run(feeds)
            latencies.append(1000 * (time.perf_counter() - start))
    return latencies


def report(options: argparse.Namespace) -> contest.Report:
    """What is said about the figures."""
    used = ", ".join(" ".join(pair) for pair in versions(*PACKAGES[options.backend]).items())
    threads = f"{options.threads} threads" if options.threads else "a thread a core"
    return contest.Report(
        stem=f"{options.backend}-cpu-forms-{options.variant}",
        title=f"ParNet-{options.variant.upper()}, every form, {used} on the CPU",
        hardware=f"{contest.cpu_model()}, {threads}, no GPU",
        conditions=(
            f"batch 1, fp32; {options.rounds} interleaved rounds of {options.iterations} runs, "
            "a fresh process per contestant and round"
        ),
        command=(
            f"benchmarks/forms_cpu.py --backend {options.backend} --variant {options.variant} "
            f"--rounds {options.rounds} --iterations {options.iterations} "
            f"--threads {options.threads}"
        ),
    )


if __name__ == "__main__":
    main()
