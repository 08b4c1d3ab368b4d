"""Serve repositories with a real Triton and compare its answers, for ``scripts/triton-test``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import tritonclient.http as httpclient
from google.protobuf import text_format
from triton_checks import SECONDS, CheckError, Served, check_fault, check_index, checks
from triton_server import Triton, TritonError, install, running, stand_in
from tritonclient.grpc import model_config_pb2 as pb

from parnet_deploy.bundle import open_engine_bundle
from parnet_deploy.errors import ParnetDeployError
from parnet_deploy.serve.triton.deploy import OPTIONS

ROOT = Path(__file__).parent.parent
COMMAND = (str(ROOT / ".venv" / "bin" / "parnet-deploy"),)

DELAY = 2000
"""Microseconds that requests wait for others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; the exit status is 1 where one fails or there is no Triton."""
    options = parse(arguments)
    # What ends the program lets it stop Triton first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with work_folder(options.folder) as folder, tempfile.TemporaryDirectory() as scratch:
            triton = install(folder)
            if options.serve is not None:
                serve(triton, options.serve, Path(scratch), options.port, options.seconds)
            else:
                passed = check_all(triton, Path(scratch))
                print(f"{passed} passed, 0 failed")
    except (TritonError, CheckError, ParnetDeployError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/triton-test", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where Triton is installed, and kept")
    parser.add_argument("--serve", type=Path, metavar="REPOSITORY", help="serve it, check nothing")
    parser.add_argument("--port", type=int, default=8000, help="for --serve; two above it, too")
    parser.add_argument("--seconds", type=float, default=3600, help="for --serve: at most so long")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """The folder that Triton is installed in."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="triton-test-") as folder:
        yield Path(folder)


def serve(triton: Triton, repository: Path, scratch: Path, port: int, seconds: float) -> None:
    """Serve one repository with stand-ins until Ctrl-C, SIGTERM, or the time is over."""
    copy = stand_in(repository, scratch / "repository")
    ports = (port, port + 1, port + 2)
    log = scratch / "triton.log"
    with running(triton, [copy], log, options=OPTIONS, ports=ports) as address:
        print(f"serving {repository} at http://{address}, log {log}", flush=True)
        time.sleep(seconds)


def check_all(triton: Triton, scratch: Path) -> int:
    """Write repositories, serve them all with one Triton, compare.

    Returns:
        How many checks passed.
    """
    sound = make_repositories(scratch)
    faulty = make_faulty(scratch, sound)
    served = [*sound, faulty]
    copies = [stand_in(each.repository, scratch / "served" / each.name) for each in served]
    notes = scratch / "notes"
    notes.mkdir()
    passed = 0
    log = scratch / "triton.log"
    with (
        running(triton, copies, log, options=OPTIONS, notes=notes) as address,
        httpclient.InferenceServerClient(address, network_timeout=SECONDS) as client,
    ):
        passed += report("every model is ready, and nothing else is", check_index(client, served))
        for each in sound:
            for title, found in checks(client, address, each, notes):
                passed += report(f"{each.name}: {title}", found)
        passed += report("a swapped cut is served, and noticed", check_fault(client, faulty))
    return passed + report("SIGTERM: Triton stopped by itself, with status 0", "")


def report(title: str, found: str) -> int:
    """Say what passed."""
    print(f"passed  {title}{': ' + found if found else ''}", flush=True)
    return 1


def make_repositories(scratch: Path) -> list[Served]:
    """Untrained digits networks, whole and split, of a fixed and of a changing batch."""
    made = []
    for name, options in (
        ("fixed", ("--batch", "1", "--stem", "replicate")),
        ("dynamic", ("--batch", "1:1:8", "--stem", "share")),
    ):
        model = scratch / "models" / name
        call("export", "--variant", "digits", "--output", model, *options)
        for kind in ("whole", "split"):
            title = f"{name}-{kind}"
            engine, repository = scratch / "engines" / title, scratch / "repositories" / title
            split = ("--split-streams",) if kind == "split" else ()
            build = ("--backend", "onnxruntime", "--provider", "cpu", "--threads", "1", *split)
            call("build-engine", model, *build, "--output", engine)
            delay = ("--delay", DELAY) if name == "dynamic" else ()
            call("triton-repo", engine, "--output", repository, *delay)
            bundle = open_engine_bundle(engine)
            made.append(Served(name=title, engine=bundle, repository=repository))
    return made


def make_faulty(scratch: Path, sound: Sequence[Served]) -> Served:
    """A split engine's repository with two cuts of one shape swapped where they are joined.

    Triton has nothing against it: what runs is another network, and only answers tell.
    """
    source = next(each for each in sound if each.name == "fixed-split")
    repository = scratch / "repositories" / "faulty"
    call("triton-repo", source.engine.path, "--output", repository, "--name", "faulty")
    config = repository / "faulty" / "config.pbtxt"
    message = text_format.Parse(config.read_text(encoding="ascii"), pb.ModelConfig())
    mapped = message.ensemble_scheduling.step[-1].input_map
    shapes = {spec.name: spec.shape for spec in source.engine.manifest.stages[-1].inputs}
    one, other = next(
        pair for pair in combinations(shapes, 2) if len({*map(shapes.get, pair)}) == 1
    )
    mapped[one], mapped[other] = mapped[other], mapped[one]
    config.write_text(text_format.MessageToString(message), encoding="ascii")
    return Served(name="faulty", engine=source.engine, repository=repository)


def call(*arguments: object) -> None:
    """``parnet-deploy`` as a user calls it."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise CheckError(f"parnet-deploy {arguments[0]} failed: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
