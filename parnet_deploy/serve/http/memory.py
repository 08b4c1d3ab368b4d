"""Memory that is used again and again is kept, instead of being given back after every request."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEPT = 64 * 1024 * 1024
_LARGEST = 32 * 1024 * 1024


def keep_memory() -> bool:
    """Have the C library keep up to 64 MiB of freed memory.

    By default glibc gives a tensor's memory back to the system when a request ends, and the system
    clears it page by page for the next one: some 300 page faults for an image of 224x224 in
    float32, which took longer than all that a server does for it. See mallopt(3).

    Returns:
        Whether there is such a C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    done = (mallopt(_M_MMAP_THRESHOLD, _LARGEST), mallopt(_M_TRIM_THRESHOLD, _KEPT))
    return all(done)
