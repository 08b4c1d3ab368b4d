"""A process and all that it starts, stopped and ended together.

What is started with ``start_new_session=True`` leads a process group of its own, and the processes
that it starts, such as the compilers of ``torch.compile``, stay in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def signal_group(leader: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Send a signal to a process and to all in its group; nothing where all have ended.

    Args:
        leader: started with ``start_new_session=True``.
        number: which.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the latter: macOS's zombies
        os.killpg(leader.pid, number)


def end_group(leader: subprocess.Popen[Any]) -> None:
    """End a process and all in its group, also those that are stopped, and wait for the process.

    Its pipes are closed.
    """
    signal_group(leader, signal.SIGKILL)
    leader.wait()
    for pipe in (leader.stdin, leader.stdout, leader.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what could not be sent any more
                pipe.close()


def end_with_parent() -> None:
    """Let Linux end this process with its parent: a stopped one cannot notice by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
