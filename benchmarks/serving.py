"""What a server adds to its engine: parnet-deploy serve, Triton and FastAPI in one contest.

One network runs in one version of ONNX Runtime, with one thread, behind each of them; the same
client sends the same bodies, from one process and from four. In every round all are started anew
and take a turn, in shuffled order; whoever has none is stopped. Every answer is compared with the
engine's. A run that was interrupted goes on where it was when the same command is given again.

A virtual machine's core that sleeps is woken after milliseconds where the host is busy, which is
more than any server adds. With `--awake` no core sleeps, whoever's turn it is (`runtime.awake`);
with `--cores 1` clients, servers and engine share one, and nobody waits for another to wake.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))  # where Triton is installed from

from contest import RESULTS, cpu_model
from serving_contest.client import Crew, TurnError
from serving_contest.contestants import Engines, Servers, entries_of, prepare
from serving_contest.network import SMALL, build, open_engine, photographs
from serving_contest.peers import PeerError
from serving_contest.report import JUDGED, verdicts
from serving_contest.rounds import Contest, Entry, Plan, Round, conditions, hold
from serving_contest.servers import Server
from serving_contest.writing import Facts, way, write
from triton_server import TritonError

from parnet_deploy.errors import TargetError
from parnet_deploy.runtime.awake import kept_awake
from parnet_deploy.runtime.cpu import core_numbers

SIZE = (224, 224)
CLIENTS = (1, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold the contest.

    Returns:
        1 where it could not be held, Triton or ours is out, ours clearly adds more than Triton
        (by the lower quartile over rounds), or nothing can be said of a group.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if options.cores:
        os.sched_setaffinity(0, core_numbers()[-options.cores :])  # processes it starts inherit it
    workspace = options.workspace.resolve()
    workspace.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        rounds=options.rounds, requests=options.requests, warm_up=options.warm_up, clients=CLIENTS
    )
    name = Path(options.variant).stem
    contest = Contest(file=workspace / f"rounds-{name}{way(options.cores, options.awake)}.json")
    try:
        engines = make_engines(options.variant, workspace)
        servers = prepare(engines, workspace)
        with kept_awake() if options.awake else contextlib.nullcontext():
            measure(contest, plan, engines, servers, workspace)
    except (PeerError, TritonError, TargetError, TurnError) as exc:
        kept = f"; {len(contest.rounds)} rounds are kept, the same command goes on"
        print(f"error: {exc}{kept if contest.rounds else ''}", file=sys.stderr)
        return 1
    facts = Facts(
        network=name,
        cores=options.cores,
        awake=options.awake,
        size=SIZE,
        plan=plan,
        command=command_of(given, options.workspace),
        versions=servers.versions,
    )
    print(write(contest, facts, options.output))
    return status_of(contest.rounds)


def status_of(rounds: Sequence[Round]) -> int:
    """The exit status by what was measured."""
    judged = verdicts(rounds)
    complete = len(judged) == len(JUDGED) * len(rounds[0])
    bad = any(verdict.fails or verdict.holds is None for verdict in judged)
    return 0 if complete and not bad else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workspace", type=Path, required=True, help="folder for peers and engines, which are kept"
    )
    parser.add_argument("--variant", default=str(SMALL), help="network: its name, or SPEC.json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=400, help="of a turn, of all clients")
    parser.add_argument("--warm-up", type=int, default=20, help="of a client, in front of them")
    parser.add_argument("--cores", type=int, default=0, help="that all share (default: all)")
    parser.add_argument("--awake", action="store_true", help="no core goes idle (needs root)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    return parser.parse_args(arguments)


def make_engines(variant: str, workspace: Path) -> Engines:
    """The network's engines, built where they are not there yet."""
    files = photographs(SIZE)
    fp32, uint8 = (
        open_engine(build(variant, workspace, uint8=uint8), files) for uint8 in (False, True)
    )
    return Engines(fp32=fp32, uint8=uint8, files=files)


def measure(
    contest: Contest, plan: Plan, engines: Engines, servers: Servers, workspace: Path
) -> None:
    """Measure the rounds that are missing in a contest.

    Raises:
        PeerError: a server does not start.
        TurnError: a client does not.
    """
    entries = entries_of(engines)
    mark = conditions(
        plan,
        engines=engines.fp32.path,
        versions=servers.versions,
        cpu=cpu_model(),
        cores=core_numbers(),
    )
    contest.load(mark)

    @contextlib.contextmanager
    def gather() -> Iterator[tuple[dict[str, Server], Crew]]:
        with contextlib.ExitStack() as ending:
            running = {}
            for launch in servers.launches:
                server = Server(launch, workspace / f"{launch.name}.log")
                ending.callback(server.end)
                running[launch.name] = server
            yield running, ending.enter_context(crew_of(entries, engines))

    hold(contest, plan, entries, gather, mark)


def crew_of(entries: Sequence[Entry], engines: Engines) -> Crew:
    """The clients, and the engines alone."""
    questions = {entry.key: entry.questions for entry in entries}
    alone = {body: engine.path for body, engine in engines.by_body.items()}
    return Crew(max(CLIENTS), questions, alone)


def command_of(given: Sequence[str], workspace: Path) -> str:
    """What makes the result again, without a path of this machine."""
    shown = ["WORKSPACE" if part == str(workspace) else part for part in given]
    return shlex.join([".venv/bin/python", "benchmarks/serving.py", *shown])


if __name__ == "__main__":
    sys.exit(main())
