"""The server's memory, files and threads, while it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A process at one moment.

    Attributes:
        requests: that were answered by then.
        memory: resident, in bytes.
        files: open ones.
        threads: of it.
    """

    requests: int
    memory: int
    files: int
    threads: int


def look(pid: int, requests: int = 0) -> Sample:
    """A process now. Reference: proc_pid_status(5).

    Raises:
        OSError: it has ended.
    """
    folder = Path(f"/proc/{pid}")
    lines = (folder / "status").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines)
    return Sample(
        requests=requests,
        memory=1024 * int(said["VmRSS"].split()[0]),
        files=len(list((folder / "fd").iterdir())),
        threads=int(said["Threads"]),
    )


class Watch:
    """Looks at a process again and again while the block runs."""

    def __init__(self, pid: int, progress: Callable[[], int], every: float) -> None:
        """Watch.

        Args:
            pid: whom.
            progress: how many requests were answered.
            every: seconds.
        """
        self._pid = pid
        self._progress = progress
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            try:
                self.samples.append(look(self._pid, self._progress()))
            except (OSError, KeyError):  # it has ended, which others notice
                return
            if self._over.wait(self._every):
                return
