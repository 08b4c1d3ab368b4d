"""A store of images of its own, and the serving image built in it; for ``container_test.py``."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUITE = "bookworm"  # Debian's, as of the Dockerfile's own BASE

LONGEST = 900.0
"""Seconds that any command may take."""

UNNEEDED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
)
"""What slim images of Debian leave out, too."""


class ContainerTestError(Exception):
    """A sentence that says what is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Images and containers of this test alone.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    def command(self, tool: str, *arguments: object) -> list[str]:
        """A command of podman or buildah on this store."""
        where = ["--root", str(self.folder / "images"), "--runroot", str(self.folder / "run")]
        if tool == "podman":
            where += ["--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        return [tool, *where, *map(str, arguments)]

    def podman(self, *arguments: object) -> str:
        """What a podman command printed."""
        return output(self.command("podman", *arguments))

    def destroy(self) -> None:
        """Stop and remove everything."""
        for words in (("rm", "--all", "--force"), ("rmi", "--all", "--force")):
            subprocess.run(self.command("podman", *words), capture_output=True, check=False)
        subprocess.run(self.command("buildah", "rm", "--all"), capture_output=True, check=False)
        shutil.rmtree(self.folder)


def output(command: Sequence[str]) -> str:
    """What a command printed.

    Raises:
        ContainerTestError: it failed, or took too long; what it said last is quoted.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired as exc:
        raise ContainerTestError(f"'{shlex.join(command)}' took over {LONGEST:.0f} s") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-4000:]
        raise ContainerTestError(f"'{shlex.join(command)}' ended with {done.returncode}: {said}")
    return done.stdout


def make_base(store: Store) -> str:
    """Debian with Python, pip and venv, as an image."""
    folder = store.folder / "debian"
    packages = "--include=python3,python3-venv,python3-pip,ca-certificates"
    output(["debootstrap", "--variant=minbase", packages, SUITE, str(folder)])
    for left_out in UNNEEDED:
        shutil.rmtree(folder / left_out)
    archive = store.folder / "debian.tar"
    output(["tar", "--create", "--file", str(archive), "--directory", str(folder), "."])
    shutil.rmtree(folder)
    image = store.podman("import", "--quiet", archive).strip()
    archive.unlink()
    return image


def pip_secrets(folder: Path, listed: str) -> list[str]:
    """This machine's way to its package index, as the secrets that the Dockerfile takes.

    Args:
        folder: where the file of one of them is written.
        listed: what ``pip config list`` printed.
    """
    found = [line.split("=", 1) for line in listed.splitlines() if "=" in line]
    found.sort(key=lambda pair: pair[0].startswith(":env:"))  # which win
    settings = {key.rpartition(".")[2]: value.strip("'") for key, value in found}
    lines, secrets = ["[global]"], []
    for key in ("index-url", "extra-index-url", "trusted-host"):
        words = settings.get(key, "").split()
        if remote := [word for word in words if not word.startswith("file:")]:
            lines.append(f"{key} = {' '.join(remote)}")
    if certificate := settings.get("cert"):
        lines.append("cert = /run/secrets/ca.pem")
        secrets += ["--secret", f"id=ca.pem,src={certificate}"]
    file = folder / "pip.conf"
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return [*secrets, "--secret", f"id=pip.conf,src={file}"]


def build(store: Store, base: str, flavour: str) -> str:
    """The image, built from the working tree."""
    image = f"localhost/parnet-deploy:{flavour}"
    arguments = ("--build-arg", f"BASE={base}", "--build-arg", f"FLAVOUR={flavour}")
    secrets = pip_secrets(store.folder, output([sys.executable, "-m", "pip", "config", "list"]))
    command = store.command(
        *("buildah", "bud", "--isolation", "chroot", "--format", "docker"),
        *(*arguments, *secrets, "--tag", image, ROOT),
    )
    output(command)
    return image
