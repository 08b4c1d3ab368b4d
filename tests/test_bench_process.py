"""A contestant's process: it rests when it has no turn, and says why it ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from parnet_deploy.bench.contest import process
from parnet_deploy.bench.contest.messages import Assignment, Turn
from parnet_deploy.bench.contest.process import WorkerProcess, worker_of
from parnet_deploy.bench.contestant import Contestant, Group
from parnet_deploy.errors import RunnerError

TURN = Turn(warm_up=0, warm_up_seconds=0.0, iterations=1, seconds=0.0)

OPENED = '{"opened": {"output": "logits", "precision": "fp32", "kernels": 3, "versions": {}}}'
TURNED = '{"turned": {"latencies": [1.0, 2.0]}}'
FINISHED = '{"finished": {"timeline": [], "host_memory": 5, "gpu_memory": null}}'

WELL = f"""
import sys
sys.stdin.readline()
print('{OPENED}', flush=True)
for line in sys.stdin:
    print('{TURNED}', flush=True)
print('{FINISHED}', flush=True)
"""


def assignment(group: Group = "ours") -> Assignment:
    contestant = Contestant(
        name="a", group=group, network="l", opener="engine", path="e", images="i.npz"
    )
    return Assignment(contestant=contestant, batch=1, answers="a.npy")


def worker(program: str) -> WorkerProcess:
    return WorkerProcess(assignment(), command=(sys.executable, "-c", program))


def pid_of(held: WorkerProcess) -> int:
    assert held._process is not None
    return held._process.pid


def state(pid: int) -> str:
    """``T`` for a stopped process; stopping takes effect a moment after the signal."""
    for _ in range(200):
        found = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if found == "T":
            return found
        time.sleep(0.01)
    return found


def ended(pid: int) -> bool:
    """Whether a process is gone, or only its parent has not asked about it yet (a zombie)."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_it_rests_between_its_turns() -> None:
    held = worker(WELL)
    opened, seconds = held.open()
    pid = pid_of(held)
    assert (opened.output, opened.kernels) == ("logits", 3)
    assert seconds > 0
    assert state(pid) == "T"
    for _ in range(3):
        assert held.turn(TURN).latencies == (1.0, 2.0)
        assert state(pid) == "T"
    assert held.finish().host_memory == 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit(3)", "its process ended with status 3"),
        ("raise ValueError('no such thing')", "ended with status 1: ValueError: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with signal 9"),
        ('print(\'{"error": "no GPU here"}\', flush=True)', "^no GPU here$"),
        ("print('hello', flush=True)", "cannot be read"),
        ("print('{}', flush=True)", "it gave no first answer"),
        (f"print('{TURNED}', flush=True)", "it gave no first answer"),
    ],
)
def test_what_goes_wrong_at_the_beginning_is_told(program: str, reason: str) -> None:
    held = worker(program)
    with pytest.raises(RunnerError, match=reason):
        held.open()
    with pytest.raises(RunnerError, match="its process has ended"):
        held.turn(TURN)
    held.kill()


def test_what_goes_wrong_in_a_turn_is_told() -> None:
    program = f"""
import sys
sys.stdin.readline()
print('{OPENED}', flush=True)
sys.stdin.readline()
sys.exit("out of memory on cuda:1")
"""
    held = worker(program)
    held.open()
    with pytest.raises(RunnerError, match="ended with status 1: out of memory on cuda:1"):
        held.turn(TURN)


def test_one_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "OPENING_SECONDS", 0.5)
    held = worker("import time; time.sleep(100)")
    with pytest.raises(RunnerError, match="no answer within 0 seconds"):
        held.open()


def test_killing_ends_a_process_that_rests() -> None:
    held = worker(WELL)
    held.open()
    pid = pid_of(held)
    held.kill()
    held.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = f"""
import json, subprocess, sys
sys.stdin.readline()
waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
child = subprocess.Popen(waiting, stdin=subprocess.PIPE)
opened = json.loads('{OPENED}')
opened["opened"]["kernels"] = child.pid
print(json.dumps(opened), flush=True)
for line in sys.stdin:
    print('{TURNED}', flush=True)
print('{FINISHED}', flush=True)
"""
"""Starts another process, as ``torch.compile`` does, and tells its number as its kernels."""


def test_what_it_has_started_rests_and_ends_with_it() -> None:
    held = worker(PARENT)
    opened, _ = held.open()
    child = opened.kernels
    assert child is not None
    assert state(child) == "T"
    held.turn(TURN)
    assert state(child) == "T"
    held.kill()
    assert ended(child)


@pytest.mark.parametrize("how", ["at the end", "in a turn"])
def test_what_it_leaves_behind_is_ended(how: str) -> None:
    held = worker(PARENT)
    opened, _ = held.open()
    assert opened.kernels is not None
    if how == "at the end":
        held.finish()
    else:
        os.kill(pid_of(held), signal.SIGKILL)
        with pytest.raises(RunnerError, match="its process ended with signal 9"):
            held.turn(TURN)
    assert ended(opened.kernels)


def test_what_it_has_started_runs_while_it_has_its_turn() -> None:
    """The child is waited for within the turn; one that is stopped would never end."""
    held = worker(PARENT.replace("in sys.stdin:", "in sys.stdin:\n    child.communicate()"))
    opened, _ = held.open()
    assert opened.kernels is not None
    held.turn(TURN)
    assert ended(opened.kernels)
    held.kill()


def test_an_interrupt_of_the_terminal_does_not_reach_it() -> None:
    """It is the benchmark's to end its processes: Ctrl-C goes to a whole process group."""
    held = worker(WELL)
    held.open()
    assert os.getpgid(pid_of(held)) != os.getpgid(0)
    held.kill()


@pytest.mark.parametrize(("group", "policy"), [("ours", "PASSIVE"), ("peer", None)])
def test_peers_do_not_get_the_environment_of_our_own_command_line(
    group: Group, policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("OMP_DISPLAY_ENV", "FALSE")
    environment = worker_of(assignment(group))._environment
    assert environment.get("OMP_WAIT_POLICY") == policy
    assert environment["OMP_DISPLAY_ENV"] == "FALSE"


@pytest.mark.parametrize("group", ["ours", "peer"])
def test_what_limits_threads_reaches_nobody(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would not notice OMP_NUM_THREADS=1, and torch would be held to one thread."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    environment = worker_of(assignment(group))._environment
    assert not [name for name in environment if name.endswith("_NUM_THREADS")]
    assert os.environ["OMP_NUM_THREADS"] == "1"
