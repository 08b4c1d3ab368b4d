"""The command line of ``scripts/soak``."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serving_soak.network import build
from serving_soak.report import markdown
from serving_soak.running import Plan, SoakError, soak

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak a server; 1 where something does not hold, or it could not be run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    plan = Plan(
        requests=options.requests,
        clients=options.clients,
        seconds=options.seconds,
        options=("--max-batch", str(options.max_batch)),
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = soak(plan, build(Path(folder)), Path(folder) / "serve.log")
        except SoakError as exc:
            print(f"error: {exc}", file=sys.stderr)
            return 1
    text = markdown(plan, outcome, shlex.join(["scripts/soak", *given]))
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        today = datetime.date.today().isoformat()
        (options.output / f"{today}-serving-soak.md").write_text(text)
    return 1 if outcome.faults else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="from all clients")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1500.0, help="clients stop then")
    parser.add_argument("--max-batch", type=int, default=1, help="the server's dynamic batching")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
