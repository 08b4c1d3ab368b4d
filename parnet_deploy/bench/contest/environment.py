"""The environment variables that contestants' processes get.

They are to have the same machine. Variables that limit threads reach some libraries and not
others: torch and ncnn obey ``OMP_NUM_THREADS``, ONNX Runtime and OpenVINO have pools of their own;
so they reach nobody. ``OMP_WAIT_POLICY``, which this project's own command line sets, is part of
how its engines run, and not of how their peers' users run theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

from parnet_deploy.bench.contestant import Group
from parnet_deploy.roofline.cpu import THREAD_VARIABLES, without_thread_limits

WAIT_POLICY = "OMP_WAIT_POLICY"

_OURS = "PASSIVE"  # what the command line sets where nothing is set


def environment_of(group: Group, given: Mapping[str, str]) -> dict[str, str]:
    """What a contestant gets.

    Args:
        group: whether it is an engine of this project or a peer.
        given: the benchmark's own environment.
    """
    left_out = (WAIT_POLICY,) if group == "peer" else ()
    environment = without_thread_limits(given)
    return {name: text for name, text in environment.items() if name not in left_out}


def not_passed_on(given: Mapping[str, str]) -> tuple[str, ...]:
    """In words, what a user has set and contestants did not get.

    Args:
        given: the benchmark's own environment.
    """
    told = [
        f"{name}={given[name]} is set and was kept from all contestants: each takes as many "
        "threads as it does by itself"
        for name in THREAD_VARIABLES
        if name in given
    ]
    policy = given.get(WAIT_POLICY, _OURS)
    if policy.upper() != _OURS:
        told.append(f"{WAIT_POLICY}={policy} is set and was kept from peers")
    return tuple(told)
