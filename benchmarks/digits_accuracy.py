"""What the quick recipe reaches on scikit-learn's digits, seed by seed, and as an engine.

For every seed a network is trained from scratch, exported, built into an engine of ONNX Runtime and
evaluated on the held-out third, as a checkpoint and as the engine, by the command line as people
use it. Ends with an error unless both get the same images right, to the last one.

    benchmarks/digits_accuracy.py --seeds 5
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from contest import RESULTS, cpu_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """One seed's network.

    Attributes:
        seed: of everything random.
        right: images of the test split that both forms have right.
        images: how many there are.
        seconds: wall-clock time of ``train``, from its start to its end.
    """

    seed: int
    right: int
    images: int
    seconds: float

    @property
    def percent(self) -> float:
        """Accuracy."""
        return 100 * self.right / self.images


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate, then write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="0 to N - 1")
    options = parser.parse_args(arguments)
    runs = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(train(seed, Path(folder)))
        print(f"seed {seed}: {runs[-1].right} of {runs[-1].images}, {runs[-1].seconds:.0f} s")
    write(runs)


def train(seed: int, folder: Path) -> Trained:
    """One seed, from nothing to an engine."""
    start = time.perf_counter()
    call(
        "train", "--data", "digits", "--recipe", "quick", "--seed", seed, "--output", folder / "run"
    )
    seconds = time.perf_counter() - start
    checkpoint = folder / "run" / "checkpoint.safetensors"
    call("export", "--checkpoint", checkpoint, "--output", folder / "model", "--batch", "1:1:8")
    call(
        "build-engine", folder / "model", "--backend", "onnxruntime", "--output", folder / "engine"
    )
    right = [seen(form, folder) for form in (checkpoint, folder / "engine")]
    if right[0] != right[1]:
        differing = [image for image in right[0] if right[0][image] != right[1][image]]
        sys.exit(f"seed {seed}: the engine sees something else in {', '.join(differing)}")
    hits = sum(true == predicted for true, predicted in right[0].values())
    return Trained(seed=seed, right=hits, images=len(right[0]), seconds=seconds)


def seen(form: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Of every image its true class and what is seen in it."""
    output = folder / f"evaluation-{form.name}"
    call("evaluate", form, "--data", "digits", "--output", output)
    with (output / "images.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: (row["true"], row["predicted"]) for row in csv.DictReader(file)}


def call(*arguments: object) -> None:
    """Run parnet-deploy; what it prints is shown only where it fails."""
    command = [sys.executable, "-m", "parnet_deploy", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def write(runs: Sequence[Trained]) -> None:
    """A table for people and JSON for programs, dated."""
    today = date.today().isoformat()
    percents = [run.percent for run in runs]
    low, high = min(percents), max(percents)
    hardware = f"{cpu_model()}, {os.cpu_count()} threads, no GPU"
    lines = [
        "# The quick recipe on scikit-learn's digits",
        "",
        f"{today}, {hardware}. Variant `digits`, from scratch; {runs[0].images} images held out.",
        "Every network was exported and built into an engine of ONNX Runtime in float32; in every",
        "image the engine sees the same class as the checkpoint.",
        "",
        f"    benchmarks/digits_accuracy.py --seeds {len(runs)}",
        "",
        "| seed | right | accuracy | training, s |",
        "|---|---|---|---|",
        *(f"| {r.seed} | {r.right} | {r.percent:.2f} % | {r.seconds:.0f} |" for r in runs),
        "",
        f"Lowest {low:.2f} %, median {statistics.median(percents):.2f} %, highest {high:.2f} %.",
        "",
    ]
    stem = RESULTS / f"{today}-digits-accuracy"
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    content = {"date": today, "hardware": hardware, "runs": [asdict(run) for run in runs]}
    stem.with_suffix(".json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(f"written: {stem}.md")


if __name__ == "__main__":
    main()
