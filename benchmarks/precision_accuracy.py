"""What every precision keeps of the answers: agreement with float32, and accuracy.

Networks are trained or fitted, exported in every precision as people do it, and each exported
graph is run in ONNX Runtime as it was written, rounding where it rounds (as `verify` runs it). What
int8 costs layer by layer, and what a naive quantisation would lose, is in the reports of the
exports. Ranges and what is kept are found on other images than those that are counted here.

    benchmarks/precision_accuracy.py --workspace FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import RESULTS, cpu_model
from precision_contest.networks import NETWORKS, Network, call, normalised

from parnet_deploy.bundle import open_model
from parnet_deploy.net import load_checkpoint
from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import QUANTISED
from parnet_deploy.verify.inputs import Inputs, batches
from parnet_deploy.verify.opening import open_whole

BUDGET = 0.5
FORMS = (
    ("fp16", "tensorrt"),
    ("bf16", "tensorrt"),
    ("int8", "tensorrt"),
    ("int8", "onnxruntime"),
    ("fp8", "tensorrt"),
)
LEARNED = (("int8", "tensorrt"),)
"""What a network was trained for: its ranges need not be good for anything else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One network in one precision.

    Attributes:
        network: its name.
        precision: what it was exported to.
        target: for which backend.
        images: unseen images.
        float32: accuracy of the training form in float64 on them, 0 to 1.
        accuracy: of the exported graph.
        agreement: share of images of which both see the same class.
        kept: layers that are not quantised.
        layers: layers that could be.
        naive: accuracy on the calibration images with a scale for a whole kernel and whole ranges;
            None where nothing is quantised, or the ranges were learned.
        quantised: the same with every layer quantised as it is asked for.
        before: of float32 on the calibration images.
        blamed: layers from which half of the noise comes.
    """

    network: str
    precision: str
    target: str
    images: int
    float32: float
    accuracy: float
    agreement: float
    kept: int | None = None
    layers: int | None = None
    naive: float | None = None
    quantised: float | None = None
    before: float | None = None
    blamed: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, run, count, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="networks are kept there")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    options = parser.parse_args(arguments)
    options.workspace.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in options.networks.split(","):
        network = NETWORKS[name](options.workspace)
        for outcome in tried(network):
            outcomes.append(outcome)
            print(line(outcome), file=sys.stderr)
    write(outcomes, options.networks)


def tried(network: Network) -> Iterator[Outcome]:
    """One network in all precisions."""
    expected = trained_answers(network)
    for precision, target in LEARNED if network.learned else FORMS:
        with tempfile.TemporaryDirectory() as folder:
            yield one(network, precision, target, Path(folder), expected)


def one(network: Network, precision: str, target: str, folder: Path, expected: Array) -> Outcome:
    """Export and run."""
    model, report = folder / "model", folder / "report"
    quantises = precision in QUANTISED
    asked: list[object] = []
    if quantises and not network.learned:
        asked += ["--calibrate", network.calibrate, "--calibration-images", network.images]
        asked += ["--auto-keep", BUDGET, "--quantisation-report", report]
    call(
        *("export", "--checkpoint", network.checkpoint, "--output", model, "--batch", "1:8:8"),
        *("--precision", precision, "--for", target, *asked),
    )
    bundle = open_model(model)
    fed = Inputs(description="unseen", images=as_read(network, bundle.manifest.preprocessing))
    rung = open_whole(bundle, folder / "scratch")
    answers = [
        rung.observe(batch).outputs["logits"]
        for batch in batches(fed, bundle.manifest.preprocessing, 8)
    ]
    rung.close()
    seen, right = np.concatenate(answers).argmax(1), expected.argmax(1)
    quantisation = bundle.manifest.quantisation
    told = json.loads((report / "quantisation.json").read_text()) if report.is_dir() else {}
    return Outcome(
        network=network.name,
        precision=precision,
        target=target,
        images=len(network.test),
        float32=float((right == network.labels).mean()),
        accuracy=float((seen == network.labels).mean()),
        agreement=float((seen == right).mean()),
        kept=None if quantisation is None else len(quantisation.kept),
        layers=len(told["layers"]) if told else None,
        naive=told["naive"]["accuracy"] if told else None,
        quantised=told["whole"]["accuracy"] if told else None,
        before=told["accuracy"] if told else None,
        blamed=tuple(each["block"] for each in told["blamed"]) if told else (),
    )


def as_read(network: Network, preprocessing: Any) -> Array:
    """The test images as a graph without preprocessing reads them."""
    return normalised(network.test, preprocessing).numpy()


def trained_answers(network: Network) -> Array:
    """The training form's logits in float64, (N, classes)."""
    found = load_checkpoint(network.checkpoint)
    model = found.model.double().eval()
    images = as_read(network, found.facts.preprocessing)
    with torch.inference_mode():
        parts = [model(torch.from_numpy(part).double()) for part in np.array_split(images, 16)]
    result: Array = torch.cat(parts).numpy()
    return result


def line(outcome: Outcome) -> str:
    """A row of the table."""
    kept = "" if outcome.kept is None else str(outcome.kept)
    kept += f" of {outcome.layers}" if outcome.layers else ""
    cells = [
        *(outcome.network, outcome.precision, outcome.target),
        f"{100 * outcome.agreement:.2f} %",
        f"{100 * outcome.accuracy:.2f} %",
        f"{100 * (outcome.float32 - outcome.accuracy):+.2f}",
        kept,
        *(
            "" if value is None else f"{100 * value:.2f} %"
            for value in (outcome.before, outcome.quantised, outcome.naive)
        ),
        ", ".join(outcome.blamed),
    ]
    return f"| {' | '.join(cells)} |"


def write(outcomes: Sequence[Outcome], networks: str) -> None:
    """A table for people and JSON for programs, dated."""
    today = date.today().isoformat()
    hardware = f"{cpu_model()}, {os.cpu_count()} threads, no GPU"
    heads = ("network", "precision", "for", "agreement", "accuracy", "points lost", "kept")
    heads += ("fp32, calibration images", "all quantised", "naive", "to blame")
    text = [
        "# What every precision keeps of the answers",
        "",
        _conditions(today, hardware),
        "",
        f"    benchmarks/precision_accuracy.py --workspace FOLDER --networks {networks}",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *map(line, outcomes),
        "",
        "Unseen images, and float32's accuracy on them: "
        + ", ".join(
            f"{name} {one.images}, {100 * one.float32:.2f} %"
            for name, one in {each.network: each for each in outcomes}.items()
        )
        + ". Naive: one scale for a whole kernel, and the whole range of each tensor.",
        "",
    ]
    some = "" if networks == ",".join(NETWORKS) else f"-{networks.replace(',', '-')}"
    stem = RESULTS / f"{today}-precision-accuracy{some}"
    stem.with_suffix(".md").write_text("\n".join(text), encoding="utf-8")
    content = {"date": today, "hardware": hardware, "outcomes": [asdict(o) for o in outcomes]}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {stem}.md")


def _conditions(today: str, hardware: str) -> str:
    return (
        f"{today}, {hardware}. Graphs as `export` writes them (int8 and fp8 with `--auto-keep "
        f"{BUDGET}`), run in ONNX Runtime as they stand. Agreement, accuracy and points lost are "
        "of images that neither training nor calibration has seen (of the photographs other "
        "crops of the same ones), the last three figures "
        "of the calibration images."
    )


if __name__ == "__main__":
    main()
