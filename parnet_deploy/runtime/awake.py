"""Processors kept out of idle states, from which one may take longer to wake than a request takes.

A processor that waits is switched off in part, and in a virtual machine its host gives it to
somebody else: to be woken again took up to 4 ms where this was measured. Linux lets a program say
how long that may take at most, for as long as it holds a file open. Reference:
https://docs.kernel.org/power/pm_qos_interface.html.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from parnet_deploy.errors import TargetError, os_reason

DEVICE = Path("/dev/cpu_dma_latency")

_NOT_AT_ALL = struct.pack("=i", 0)
"""Microseconds that waking may take: 0 keeps every processor polling."""


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """While the block runs no processor of this machine goes idle, whoever it works for.

    That takes power, and turbo frequencies from those that work. The wish ends with the process.

    Raises:
        TargetError: the system has no such device, or this user may not write to it.
    """
    device = -1
    try:
        device = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
        os.write(device, _NOT_AT_ALL)
    except OSError as exc:
        if device >= 0:
            os.close(device)
        raise TargetError(
            f"the processors cannot be kept awake: {DEVICE}: {os_reason(exc)}; it takes Linux, "
            f"and root or write access to that file (in a container: --device {DEVICE})"
        ) from exc
    try:
        yield
    finally:
        os.close(device)
