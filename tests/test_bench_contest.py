"""The contest: one at a time, in shuffled order, and who fails is left out with the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parnet_deploy.bench.contest.holding import Contest, hold_contest, share_out, turn_of
from parnet_deploy.bench.contest.messages import Assignment, Finished, Opened, Turn, Turned
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.result import Settings
from parnet_deploy.errors import RunnerError, UsageError

OPENED = Opened(output="logits", precision="fp32", kernels=None, versions={})
FINISHED = Finished(timeline=(), host_memory=7, gpu_memory=None)


@dataclass
class Hall:
    """Where the contest is held: who did what, in order, and who is to fail at what."""

    fail: dict[tuple[str, str], int] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    alive: Counter[str] = field(default_factory=Counter)

    def employ(self, assignment: Assignment) -> FakeWorker:
        name = assignment.contestant.name
        self.alive[name] += 1
        return FakeWorker(self, name)

    def did(self, name: str, what: str) -> None:
        self.events.append((name, what))
        if (name, what) in self.fail:
            self.fail[name, what] -= 1
            if self.fail[name, what] < 0:
                raise RunnerError(f"{name} broke at {what}")

    def order(self, what: str) -> list[str]:
        return [name for name, done in self.events if done == what]


@dataclass
class FakeWorker:
    hall: Hall
    name: str
    killed: bool = False

    def open(self) -> tuple[Opened, float]:
        self.hall.did(self.name, "open")
        return OPENED, 1.5

    def turn(self, turn: Turn) -> Turned:
        self.hall.turns.append(turn)
        self.hall.did(self.name, "turn")
        return Turned(latencies=(1.0, 2.0), compute=(0.5,))

    def finish(self) -> Finished:
        self.hall.did(self.name, "finish")
        return FINISHED

    def kill(self) -> None:
        if not self.killed:
            self.killed = True
            self.hall.alive[self.name] -= 1


def contestant(name: str, network: str = "l") -> Contestant:
    return Contestant(
        name=name, group="ours", network=network, opener="engine", path="e", images="i.npz"
    )


def hold(hall: Hall, folder: Path, *names: str, **settings: int) -> Contest:
    return hold_contest(
        [contestant(name) for name in names], Settings(**settings), folder, employ=hall.employ
    )


def test_everybody_takes_one_turn_a_round_in_an_order_that_changes(tmp_path: Path) -> None:
    hall = Hall()
    contest = hold(hall, tmp_path, "a", "b", "c", rounds=12, processes=3)
    turns = hall.order("turn")
    rounds = [tuple(turns[at : at + 3]) for at in range(0, 36, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 2
    assert [len(record.rounds) for record in contest.records] == [12, 12, 12]
    assert [len(record.compute) for record in contest.records] == [12, 12, 12]
    assert [record.contestant.name for record in contest.records] == ["a", "b", "c"]
    assert not contest.absent


def test_the_order_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        hall = Hall()
        hold(hall, tmp_path, "a", "b", "c", rounds=6, processes=1, seed=seed)
        orders.append(hall.events)
    assert orders[0] == orders[1] != orders[2]


def test_contestants_are_started_anew_and_the_rounds_are_divided(tmp_path: Path) -> None:
    hall = Hall()
    contest = hold(hall, tmp_path, "a", "b", rounds=7, processes=3)
    assert Counter(hall.order("open")) == {"a": 3, "b": 3}
    assert Counter(hall.order("finish")) == {"a": 3, "b": 3}
    assert not +hall.alive
    assert contest.records[0].first_answer == [1.5, 1.5, 1.5]
    assert contest.records[0].finished == FINISHED
    assert [e for e in hall.events if e[0] == "a"] == [
        ("a", what) for turns in (3, 2, 2) for what in ("open", *["turn"] * turns, "finish")
    ]


@pytest.mark.parametrize(
    ("what", "after"), [("open", 0), ("open", 1), ("turn", 0), ("turn", 5), ("finish", 0)]
)
def test_who_fails_is_left_out_and_the_others_go_on(tmp_path: Path, what: str, after: int) -> None:
    hall = Hall(fail={("b", what): after})
    contest = hold(hall, tmp_path, "a", "b", "c", rounds=6, processes=2)
    assert [record.contestant.name for record in contest.records] == ["a", "c"]
    assert [len(record.rounds) for record in contest.records] == [6, 6]
    (absence,) = contest.absent
    assert (absence.name, absence.network, absence.reason) == ("b", "l", f"b broke at {what}")
    assert hall.order(what).count("b") == after + 1  # it is not asked again
    assert not +hall.alive


def test_when_all_fail_nobody_is_left(tmp_path: Path) -> None:
    hall = Hall(fail={("a", "turn"): 0, ("b", "open"): 0})
    contest = hold(hall, tmp_path, "a", "b", rounds=4, processes=2)
    assert contest.records == ()
    assert {absence.name for absence in contest.absent} == {"a", "b"}


def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    hall = Hall()
    count = 0

    def interrupt(step: str) -> None:
        nonlocal count
        count += step.startswith("round")
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hold_contest(
            [contestant("a"), contestant("b")],
            Settings(rounds=4, processes=1),
            tmp_path,
            employ=hall.employ,
            progress=interrupt,
        )
    assert set(hall.alive) == {"a", "b"}
    assert not +hall.alive


def test_two_of_a_network_may_not_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="different names"):
        hold(Hall(), tmp_path, "a", "a")
    with pytest.raises(UsageError, match="different names"):
        hold(Hall(), tmp_path)
    hall = Hall()
    both = [contestant("a", "s"), contestant("a", "m")]
    contest = hold_contest(both, Settings(rounds=1, processes=1), tmp_path, employ=hall.employ)
    assert len(contest.records) == 2
    assert len({record.answers for record in contest.records}) == 2


@given(rounds=st.integers(1, 60), processes=st.integers(1, 60))
def test_rounds_are_shared_out_evenly(rounds: int, processes: int) -> None:
    shares = share_out(rounds, processes)
    assert sum(shares) == rounds
    assert len(shares) == min(rounds, processes)
    assert max(shares) - min(shares) <= 1


@given(
    rounds=st.integers(1, 40),
    iterations=st.integers(1, 500),
    seconds=st.floats(0, 100),
    warm_up=st.integers(0, 5),
)
def test_the_turns_together_reach_what_was_asked_for(
    rounds: int, iterations: int, seconds: float, warm_up: int
) -> None:
    settings = Settings(
        rounds=rounds,
        iterations=iterations,
        seconds=seconds,
        warm_up=warm_up,
        warm_up_seconds=seconds / 2,
    )
    turn = turn_of(settings)
    assert iterations <= turn.iterations * rounds < iterations + rounds
    assert turn.seconds * rounds == pytest.approx(seconds)
    assert turn.warm_up == warm_up
    assert turn.warm_up_seconds == seconds / 2  # of each turn, as the runs are


def test_networks_take_turns_as_a_whole_and_are_never_held_in_memory_together(
    tmp_path: Path,
) -> None:
    hall = Hall()
    alive: list[set[str]] = []
    named = [contestant(f"{network}{n}", network) for network in "sml" for n in range(2)]
    contest = hold_contest(
        named,
        Settings(rounds=4, processes=2),
        tmp_path,
        employ=hall.employ,
        progress=lambda step: alive.append({name for name, count in hall.alive.items() if count}),
    )
    assert all(len({name[0] for name in held}) <= 1 for held in alive)
    assert all(len(record.rounds) == 4 for record in contest.records)
    order = [name[0] for name in hall.order("open")]
    assert sorted(order[:6]) == sorted(order[6:]) == list("llmmss")
