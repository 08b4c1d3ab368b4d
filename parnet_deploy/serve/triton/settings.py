"""How a repository is to be written, as a value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parnet_deploy.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Names of models are names of folders, and stand in addresses."""

DEVICE = re.compile(r"cpu|cuda:(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class RepositorySettings:
    """How a repository is to be written.

    Attributes:
        name: what clients call the model; None: as the engine bundle is called.
        max_batch: images per run at most; None: as many as the engine takes.
        delay: microseconds that a request may wait for others to be put together with.
        preferred: batch sizes that are run at once when they are reached.
        instances: runs of one model that may be under way at once, on each device.
        placement: a device for every stage (``whole`` where not split), ``cpu`` or ``cuda:0`` ...;
            None: as the engine has them.
        model: the model bundle, where it is not where the engine says.
        storage: address that the repository will have in the cluster, for KServe.
    """

    name: str | None = None
    max_batch: int | None = None
    delay: int = 0
    preferred: tuple[int, ...] = ()
    instances: int = 1
    placement: Mapping[str, str] | None = field(default=None, hash=False)
    model: Path | None = None
    storage: str = "pvc://models"

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a name that cannot be a folder's, a size below 1, a negative delay, a device
                that is none, or an address with a space in it.
        """
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UsageError(
                "a model's name has letters, digits, '_', '.' and '-' in it, and begins with a "
                f"letter or digit; not '{self.name}'"
            )
        for name, value in (("--max-batch", self.max_batch), ("--instances", self.instances)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is at least 1, not {value}")
        if self.delay < 0:
            raise UsageError(f"--delay is not negative, not {self.delay}")
        if any(size < 1 for size in self.preferred):
            raise UsageError(f"--preferred are batch sizes from 1, not {list(self.preferred)}")
        for stage, device in (self.placement or {}).items():
            if not DEVICE.fullmatch(device):
                raise UsageError(
                    f"a device is cpu or a GPU such as cuda:0, and '{stage}' is placed on "
                    f"'{device}'"
                )
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s\"'#]+", self.storage):
            raise UsageError(
                "--storage is an address such as pvc://models or s3://bucket/models, not "
                f"'{self.storage}'"
            )
