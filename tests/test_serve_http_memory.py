"""Freed memory is kept, and what is used lies on huge pages."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from parnet_deploy.serve.http import memory

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


GATHER = """
import ctypes, mmap, re
from pathlib import Path
from parnet_deploy.serve.http.memory import gather_memory

def of(name):
    found = re.search(rf"^{name}: +(\\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    return int(found[1]) * 1024

MIB = 1 << 20
used, sparse = (mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE) for _ in range(2))
for start in range(0, 32 * MIB, mmap.PAGESIZE):
    used[start] = 1
for start in range(0, 32 * MIB, MIB):
    sparse[start] = 1
before = of("AnonHugePages"), of("Rss")
moved = gather_memory()
print(moved, of("AnonHugePages") - before[0], of("Rss") - before[1], sum(used[::mmap.PAGESIZE]))
"""


def takes_huge_pages() -> bool:
    """Whether this system has MADV_COLLAPSE, and gives huge pages to who asks."""
    area = mmap.mmap(-1, 1 << 22, flags=mmap.MAP_PRIVATE)
    area.write(b"1" * len(area))
    try:
        area.madvise(memory._MADV_COLLAPSE)
    except OSError:
        return False
    return True


@pytest.mark.skipif(not takes_huge_pages(), reason="this system gives no huge pages")
def test_what_is_used_is_moved_and_what_is_not_stays_out_of_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GATHER], capture_output=True, text=True, check=True
    )
    moved, huge, grown, kept = map(int, done.stdout.split())
    assert moved >= huge >= 28 << 20  # what is on the edges of an area is no whole huge page
    assert grown < 16 << 20  # 30 MiB, had pages been made that nobody has touched
    assert kept == 32 * 256  # nothing is lost


def test_only_memory_of_its_own_is_looked_at() -> None:
    huge = 1 << 21
    lines = [
        f"{huge - 4096:x}-{4 * huge:x} rw-p 00000000 00:00 0 ",
        f"{4 * huge:x}-{6 * huge + 4096:x} rw-p 00000000 00:00 0                    [heap]",
        f"{8 * huge:x}-{9 * huge - 4096:x} rw-p 00000000 00:00 0 ",
        f"{16 * huge:x}-{20 * huge:x} rw-p 00000000 fe:00 5367510    /lib/a library.so",
        f"{20 * huge:x}-{24 * huge:x} r--p 00000000 00:00 0 ",
        f"{24 * huge:x}-{28 * huge:x} rw-s 00000000 00:00 0 ",
        f"{28 * huge:x}-{32 * huge:x} rw-p 00000000 00:00 0         [stack]",
        f"{1 << 40:x}-{1 << 44:x} rw-p 00000000 00:00 0 ",  # reserved by somebody
    ]
    assert list(memory._writable(lines, huge)) == [huge * number for number in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("name", ["_MAPS", "_SIZE"])
def test_a_system_without_proc_or_huge_pages(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, name, tmp_path / "missing")
    assert memory.gather_memory() == 0


@pytest.mark.parametrize("size", ["", "536870912"])
def test_pages_of_another_size(size: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of pages of 512 MiB half is too much to fill up."""
    told = tmp_path / "hpage_pmd_size"
    told.write_text(size)
    monkeypatch.setattr(memory, "_SIZE", told)
    assert memory.gather_memory() == 0
