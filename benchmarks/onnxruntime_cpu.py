"""ParNet on the CPU with ONNX Runtime: unfused against fused against split, or form against form.

Each contestant runs in a fresh process in every round, in shuffled order; see README.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import contest
import numpy as np

WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One thing to measure: an ONNX graph, or an engine bundle."""

    name: str
    kind: str
    path: Path


def main() -> None:
    """Prepare, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contest", choices=("schedules", "forms"), default="schedules")
    parser.add_argument("--variant", default="l")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(*options.worker, options.iterations, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare = schedules if options.contest == "schedules" else forms
        contestants = prepare(Path(folder), options.variant, options.threads)
        commands = {contestant.name: worker(contestant, options) for contestant in contestants}
        rounds = contest.interleave(commands, options.rounds)
    rows = contest.summarise(rounds, reference=contestants[0].name)
    contest.write(report(options), rows, rounds, images=1)


def export(folder: Path, name: str, variant_name: str, **changes: object) -> Path:
    """An untrained bundle; latency does not depend on the weights."""
    from parnet_deploy.bundle import Source
    from parnet_deploy.export import ExportOptions, export_model
    from parnet_deploy.net import initialise
    from parnet_deploy.spec import Preprocessing, variant

    spec = variant(variant_name).spec
    preprocessing = Preprocessing(size=spec.image_size)
    # mypy takes every keyword of a dict of objects for each field.
    options = ExportOptions(name=name, preprocessing=preprocessing, **changes)  # type: ignore[arg-type]
    source = Source(kind="untrained", seed=0)
    return export_model(initialise(spec, seed=0), source, folder / name, options).path


def schedules(folder: Path, variant_name: str, threads: int) -> list[Contestant]:
    """The fused whole engine is the reference; unfused and split ones against it."""
    from parnet_deploy.bundle import open_model
    from parnet_deploy.engine import BuildOptions, build_engine, make_builder
    from parnet_deploy.export import ExportOptions, save_with_weights, whole_graph
    from parnet_deploy.net import load_checkpoint
    from parnet_deploy.spec import Preprocessing

    models = {stem: export(folder, f"model-{stem}", variant_name, stem=stem) for stem in STEMS}
    replicate = open_model(models["replicate"])
    model = load_checkpoint(replicate.path / "checkpoint.safetensors").model
    options = ExportOptions(name="unfused", preprocessing=Preprocessing(size=model.spec.image_size))
    unfused = folder / "unfused.onnx"
    save_with_weights(whole_graph(model, options), unfused)

    def engine(name: str, stem: str, *, split: bool) -> Contestant:
        options = BuildOptions(threads=threads, provider="cpu")
        builder = make_builder("onnxruntime", options, split=split)
        built = build_engine(open_model(models[stem]), folder / name, builder, split=split)
        return Contestant(name=name, kind="engine", path=built.path)

    return [
        engine("fused, whole engine", "replicate", split=False),
        Contestant(name="unfused, as trained", kind="graph", path=unfused),
        engine("split engine, stem replicated", "replicate", split=True),
        engine("split engine, stem shared", "share", split=True),
    ]


STEMS = ("replicate", "share")


def forms(folder: Path, variant_name: str, threads: int) -> list[Contestant]:
    """Every deploy form as a plain graph; the first is the reference."""
    from parnet_deploy.spec.form import DeployForm, IdentityBN, Join, Squeeze

    result = []
    for identity, squeeze, join in itertools.product(
        get_args(IdentityBN), get_args(Squeeze), get_args(Join)
    ):
        form = DeployForm(identity_bn=identity, squeeze=squeeze, join=join)
        name = f"identity {identity}, squeeze {squeeze}, join {join}"
        path = export(folder, f"{identity}-{squeeze}-{join}", variant_name, form=form)
        result.append(Contestant(name=name, kind="graph", path=path / "model.onnx"))
    return result


def worker(contestant: Contestant, options: argparse.Namespace) -> list[str]:
    """The command that runs a contestant."""
    command = [sys.executable, __file__, "--worker", contestant.kind, str(contestant.path)]
    return [*command, "--iterations", str(options.iterations), "--threads", str(options.threads)]


def work(kind: str, path: str, iterations: int, threads: int) -> list[float]:
    """Run one contestant: latencies in milliseconds, from host memory to host memory."""
    with runner(kind, Path(path), threads) as (run, size):
        images = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
        for _ in range(WARM_UP):
            run(images)
        latencies = []
        for _ in range(iterations):
            start = time.perf_counter()
            run(images)
            latencies.append(1000 * (time.perf_counter() - start))
    return latencies


@contextmanager
def runner(
    kind: str, path: Path, threads: int
) -> Iterator[tuple[Callable[[np.ndarray], object], tuple[int, int]]]:
    """A contestant as a function of its images, and their size."""
    if kind == "engine":
        from parnet_deploy.bundle import open_engine_bundle
        from parnet_deploy.runtime import open_runner

        bundle = open_engine_bundle(path)
        opened = open_runner(bundle)
        yield lambda images: opened.run({"images": images}), bundle.manifest.spec.image_size
        opened.close()
        return
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    height, width = session.get_inputs()[0].shape[2:]
    yield lambda images: session.run(None, {"images": images}), (height, width)


def report(options: argparse.Namespace) -> contest.Report:
    """What is said about the figures."""
    version = importlib.metadata.version("onnxruntime-gpu")
    named = f"ParNet-{options.variant.upper()}, {options.contest}"
    return contest.Report(
        stem=f"onnxruntime-cpu-{options.contest}-{options.variant}",
        title=f"{named}, ONNX Runtime {version} on the CPU",
        hardware=f"{contest.cpu_model()}, {options.threads} threads, no GPU",
        conditions=(
            f"batch 1, fp32; {options.rounds} interleaved rounds of {options.iterations} runs, "
            "a fresh process per contestant and round"
        ),
        command=(
            f"benchmarks/onnxruntime_cpu.py --contest {options.contest} "
            f"--variant {options.variant} --rounds {options.rounds} "
            f"--iterations {options.iterations} --threads {options.threads}"
        ),
    )


if __name__ == "__main__":
    main()
