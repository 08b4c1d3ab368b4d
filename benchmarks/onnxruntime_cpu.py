"""ParNet on the CPU with ONNX Runtime: unfused against fused against split, or form against form.

Each contestant runs in a fresh process in every round, in shuffled order; see README.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np

RESULTS = Path(__file__).parent / "results"
WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One thing to measure: an ONNX graph, or an engine bundle."""

    name: str
    kind: str
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A contestant's result: milliseconds, and ratios to the reference."""

    name: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


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
        rounds = measure(contestants, options)
    rows = summarise(rounds, reference=contestants[0].name)
    report(rows, rounds, options)


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


def measure(
    contestants: list[Contestant], options: argparse.Namespace
) -> list[dict[str, list[float]]]:
    """Latencies in milliseconds by contestant, a dict a round."""
    rng = random.Random(0)
    rounds = []
    for index in range(options.rounds):
        results = {}
        for contestant in rng.sample(contestants, len(contestants)):
            command = [sys.executable, __file__, "--worker", contestant.kind, str(contestant.path)]
            command += ["--iterations", str(options.iterations), "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[contestant.name] = json.loads(done.stdout)
        rounds.append(results)
        print(f"round {index + 1} of {options.rounds}", file=sys.stderr)
    return rounds


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


def summarise(rounds: list[dict[str, list[float]]], reference: str) -> list[Row]:
    """Medians, and the median and quartiles of the ratio to the reference of the same round."""
    rows = []
    for name in rounds[0]:
        medians = [statistics.median(results[name]) for results in rounds]
        ratios = [
            statistics.median(results[name]) / statistics.median(results[reference])
            for results in rounds
        ]
        low, middle, high = (float(np.percentile(ratios, q)) for q in (25, 50, 75))
        rows.append(
            Row(
                name=name,
                median_ms=statistics.median(medians),
                ratio=middle,
                ratio_low=low,
                ratio_high=high,
            )
        )
    return sorted(rows, key=lambda row: row.ratio)


def cpu_model() -> str:
    """The processor's own name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def report(
    rows: list[Row], rounds: list[dict[str, list[float]]], options: argparse.Namespace
) -> None:
    """Write JSON with every latency, and a table."""
    today = datetime.date.today().isoformat()
    version = importlib.metadata.version("onnxruntime-gpu")
    hardware = f"{cpu_model()}, {options.threads} threads, no GPU"
    stem = RESULTS / f"{today}-onnxruntime-cpu-{options.contest}-{options.variant}"
    command = (
        f"benchmarks/onnxruntime_cpu.py --contest {options.contest} --variant {options.variant} "
        f"--rounds {options.rounds} --iterations {options.iterations} --threads {options.threads}"
    )
    lines = [
        f"# ParNet-{options.variant.upper()}, {options.contest}, ONNX Runtime {version} on the CPU",
        "",
        (
            f"{today}; {hardware}; batch 1, fp32; {options.rounds} interleaved rounds of "
            f"{options.iterations} runs, a fresh process per contestant and round."
        ),
        "",
        f"    {command}",
        "",
        "| contestant | median, ms | ratio | quartiles of the ratio |",
        "|---|---|---|---|",
        *(
            f"| {row.name} | {row.median_ms:.1f} | {row.ratio:.3f} "
            f"| {row.ratio_low:.3f} to {row.ratio_high:.3f} |"
            for row in rows
        ),
    ]
    RESULTS.mkdir(exist_ok=True)
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    data = {
        "date": today,
        "hardware": hardware,
        "onnxruntime": version,
        "command": command,
        "rows": [asdict(row) for row in rows],
        "latencies_ms": rounds,
    }
    stem.with_suffix(".json").write_text(json.dumps(data) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
