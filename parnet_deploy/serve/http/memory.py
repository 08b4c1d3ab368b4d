"""A server's memory: kept instead of given back after every request, and gathered on huge pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEPT = 64 * 1024 * 1024
_LARGEST = 32 * 1024 * 1024

_MADV_COLLAPSE = 25
_MAPS = Path("/proc/self/maps")
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
"""Bytes of a huge page: 2 MiB on x86, and on ARM 2, 32 or 512 MiB, as the pages are."""

_LARGEST_PAGE = 1 << 25
"""Bytes. Of larger ones half is too much to fill up."""

_LARGEST_HEAP = 1 << 33
"""Bytes. What is larger is an address range that somebody has reserved, and would take long."""


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


def gather_memory() -> int:
    """Have the system move what is in memory by now onto huge pages, where most of one is used.

    A network's run leaves nothing of the interpreter in the processor's caches, its translations of
    addresses included, and a request touches objects all over the heap: on pages of 4 KiB each
    of them is a walk through page tables that are not cached either. Nothing that is allocated
    later is changed. See MADV_COLLAPSE in madvise(2); Linux 6.1 and later.

    Returns:
        Bytes that were moved; 0 where the system has no such call.
    """
    try:
        libc = ctypes.CDLL(None)
        madvise, mincore = libc.madvise, libc.mincore
        maps = _MAPS.read_text().splitlines()
        huge = int(_SIZE.read_text())
    except (AttributeError, OSError, ValueError):
        return 0
    if huge > _LARGEST_PAGE:
        return 0
    pages = huge // mmap.PAGESIZE
    used = ctypes.create_string_buffer(pages)
    moved = 0
    for start in _writable(maps, huge):
        where, size = ctypes.c_void_p(start), ctypes.c_size_t(huge)
        # Pages that nobody has touched would begin to take memory.
        if mincore(where, size, used) or sum(byte & 1 for byte in used.raw) < pages // 2:
            continue
        if not madvise(where, size, _MADV_COLLAPSE):
            moved += huge
    return moved


def _writable(maps: list[str], huge: int) -> Iterator[int]:
    """Where whole huge pages begin of memory of its own that is no file's. See proc(5)."""
    for line in maps:
        place, access, _, _, file, *name = line.split(maxsplit=5)
        if access == "rw-p" and file == "0" and name in ([], ["[heap]"]):
            start, end = (int(part, 16) for part in place.split("-"))
            if end - start > _LARGEST_HEAP:
                continue
            yield from range(-(-start // huge) * huge, end - huge + 1, huge)
