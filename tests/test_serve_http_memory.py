"""Freed memory is kept: a request's pages are not cleared by the system for each one anew."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
from parnet_deploy.serve.http.memory import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    assert keep_memory()
for number in range(60):
    if number == 20:
        before = faults()
    tensors = [bytes(4 * 3 * 224 * 224) + b"." for _ in range(4)]
    del tensors
print((faults() - before) / 40)
"""


def faults(mode: str) -> float:
    """Page faults of one request that has a tensor in memory four times."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_freed_memory_is_kept() -> None:
    assert faults("given back") > 100
    assert faults("kept") < 10
