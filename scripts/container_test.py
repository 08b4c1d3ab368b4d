"""Build the serving image and run it as an operator would, for ``scripts/container-test``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from container_image import ROOT, SUITE, ContainerTestError, Store, build, make_base, output

TOOLS = ("buildah", "podman", "runc", "debootstrap", "nsenter", "curl")
PACKAGES = "buildah podman runc debootstrap iptables netavark aardvark-dns util-linux curl"

LARGEST = {"cpu": 400e6}
"""Bytes that an image of a flavour may have, its base included."""

BACKENDS = {"cpu": ("onnxruntime", "ncnn"), "openvino": ("onnxruntime", "ncnn", "openvino")}
"""What a flavour runs on a CPU; the others run ONNX Runtime there."""

START = 120.0
"""Seconds within which a container has to be healthy."""

GRACE = 30
"""Seconds that a server has to stop by itself, as the docs and compose.yaml give it."""

TOLERANCE = 1e-5
"""Of a probability: two builds of one ONNX Runtime may add in another order."""

ADDRESS = "http://127.0.0.2:8000"
"""Loopback, yet not where a server listens that binds only 127.0.0.1."""

HARDENED = (
    *("--network", "none"),  # loopback, and nothing else
    *("--read-only", "--read-only-tmpfs=false"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)

LOOK = """
import importlib.util, json, os
FOLDERS = "/", "/tmp", "/var/tmp", "/opt/parnet-deploy", "/engines"
MODULES = "torch", "onnx", "pip", "setuptools", "hatchling"
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
def writable(path):
    try:
        with open(path, "w"):
            return True
    except OSError:
        return False
print(json.dumps({
    "uids": [int(uid) for uid in status["Uid"].split()],
    "gids": [int(gid) for gid in status["Gid"].split()],
    "capabilities": [int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privileges": int(status["NoNewPrivs"]),
    "writable": [folder for folder in FOLDERS if writable(folder + "/probe")],
    "installed": [module for module in MODULES if importlib.util.find_spec(module)],
}))
"""
"""Run inside: what the server's process is and may."""


def missing(tools: Sequence[str]) -> str | None:
    """What has to be done before this can run, or None."""
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent:
        return (
            f"{', '.join(absent)} not found: apt-get install --no-install-recommends {PACKAGES} "
            "(--base IMAGE does without debootstrap)"
        )
    if os.geteuid() != 0:
        return "images are built and run as root here: sudo scripts/container-test"
    return None


def check_size(bytes_: int, flavour: str) -> None:
    """Fail where the image is larger than its flavour may be."""
    largest = LARGEST.get(flavour)
    if largest is not None and bytes_ > largest:
        raise ContainerTestError(
            f"the {flavour} image has {bytes_ / 1e6:.0f} MB, more than {largest / 1e6:.0f} MB; "
            "'podman history' says which layer grew"
        )


def make_engines(folder: Path, flavour: str) -> list[Path]:
    """An engine for each of a flavour's backends, each in a folder of its own.

    They are ParNet-S with untrained weights: what those answer is as good to compare.
    """
    deploy = (sys.executable, "-m", "parnet_deploy")
    model = str(folder / "parnet-s")
    output([*deploy, "export", "--variant", "s", "--output", model])
    engines = []
    for backend in BACKENDS.get(flavour, ("onnxruntime",)):
        engine = folder / backend / f"parnet-s-{backend}"
        engine.parent.mkdir()
        command = ("build-engine", model, "--backend", backend, "--output", str(engine))
        output([*deploy, *command])
        engines.append(engine)
    return engines


def photograph(folder: Path) -> Path:
    """A real photograph, 640x427, which scikit-learn ships."""
    from sklearn import datasets

    source = Path(datasets.__file__).parent / "images" / "china.jpg"
    return Path(shutil.copy(source, folder / "china.jpg"))


@contextmanager
def served(store: Store, image: str, engines: Path) -> Iterator[str]:
    """A hardened container of the image's own command, healthy; its name."""
    name = "serving"
    mount = f"{engines}:/engines:ro"
    # Without systemd, podman runs no health checks by itself; below they are run by hand.
    store.podman(
        *("run", "--detach", "--name", name, "--health-interval", "disable"),
        *(*HARDENED, "--volume", mount, image),
    )
    try:
        wait_until_healthy(store, name)
        yield name
    finally:
        store.podman("rm", "--force", name)


def wait_until_healthy(store: Store, name: str) -> None:
    """Run the image's own health check until it passes."""
    end = time.monotonic() + START
    check = store.command("podman", "healthcheck", "run", name)
    while subprocess.run(check, capture_output=True, check=False).returncode:
        running = state(store, name)["Running"]
        if not running or time.monotonic() > end:
            said = subprocess.run(
                store.command("podman", "logs", name), capture_output=True, text=True, check=False
            )
            why = f"not healthy after {START:.0f} s" if running else "ended instead of serving"
            raise ContainerTestError(f"the container is {why}:\n{said.stdout}{said.stderr}")
        time.sleep(0.2)


def state(store: Store, name: str) -> dict[str, Any]:
    """A container's state, as podman tells it."""
    (found,) = json.loads(store.podman("inspect", "--type", "container", name))
    told: dict[str, Any] = found["State"]
    return told


def ask(store: Store, name: str, path: str, *options: str) -> str:
    """What the server in a container answers to curl.

    Raises:
        ContainerTestError: nothing, or another status than 200.
    """
    inside = ("nsenter", "--target", str(state(store, name)["Pid"]), "--net")
    curl = ("curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*")
    return output([*inside, *curl, *options, f"{ADDRESS}{path}"])


def compare(answered: Sequence[Mapping[str, Any]], predicted: Sequence[Mapping[str, Any]]) -> None:
    """Fail unless two lists of guesses have the same labels and probabilities, in one order."""
    if not predicted or len(answered) != len(predicted):
        raise ContainerTestError(
            f"{len(answered)} guesses were answered, and {len(predicted)} predicted"
        )
    for rank, (here, there) in enumerate(zip(answered, predicted, strict=True), start=1):
        if here["label"] != there["label"]:
            raise ContainerTestError(
                f"guess {rank} is '{here['label']}', and 'predict' says '{there['label']}'"
            )
        if not abs(here["probability"] - there["probability"]) <= TOLERANCE:
            raise ContainerTestError(
                f"'{here['label']}' has probability {here['probability']}, and 'predict' says "
                f"{there['probability']}"
            )


def check_inside(seen: Mapping[str, Any]) -> None:
    """Fail where the server's process may more than it needs, or more is installed."""
    problems = []
    if 0 in seen["uids"] or 0 in seen["gids"]:
        problems.append(f"it runs as root (user {seen['uids']}, group {seen['gids']})")
    if any(seen["capabilities"]):
        problems.append(f"it has capabilities ({seen['capabilities']})")
    if seen["no_new_privileges"] != 1:
        problems.append("it may gain privileges")
    if seen["writable"]:
        problems.append(f"it can write to {', '.join(seen['writable'])}")
    if seen["installed"]:
        problems.append(f"{', '.join(seen['installed'])} can be imported")
    if problems:
        raise ContainerTestError(f"in the container: {'; '.join(problems)}")


def stop(store: Store, name: str) -> float:
    """Stop with SIGTERM.

    Returns:
        The seconds it took.
    """
    start = time.monotonic()
    store.podman("stop", "--time", GRACE, name)
    took = time.monotonic() - start
    if (status := state(store, name)["ExitCode"]) != 0:
        raise ContainerTestError(
            f"stopped with SIGTERM, the server ended with {status} after {took:.1f} s, not 0"
        )
    return took


def check_refusal(store: Store, image: str, engines: Path, *parts: str) -> None:
    """Fail unless the image ends at once with a sentence that has these parts."""
    run = ("run", "--rm", "--health-interval", "disable", *HARDENED)
    command = store.command("podman", *run, "--volume", f"{engines}:/engines:ro", image)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START)
    except subprocess.TimeoutExpired as exc:
        raise ContainerTestError(f"it goes on, where a sentence with {parts} was expected") from exc
    said = done.stderr.strip()
    if done.returncode == 0 or "Traceback" in said or not all(part in said for part in parts):
        raise ContainerTestError(
            f"expected a sentence with {', '.join(parts)}; got {done.returncode}: {said}"
        )


def predict(command: Sequence[str], engine: str, photo: str) -> list[dict[str, Any]]:
    """The guesses of ``predict`` for one image.

    Args:
        command: what starts parnet-deploy, here or in a container.
        engine: where the engine is there.
        photo: where the image is there.
    """
    said = json.loads(output([*command, "predict", engine, photo, "--json"]))
    (prediction,) = said["predictions"]
    guesses: list[dict[str, Any]] = prediction["guesses"]
    return guesses


def check_predict(store: Store, image: str, engine: Path, photo: Path) -> list[dict[str, Any]]:
    """Fail unless 'predict' says the same inside the image as here; what it says."""
    here = (sys.executable, "-m", "parnet_deploy")
    outside = predict(here, str(engine), str(photo))
    mounts = ("--volume", f"{engine.parent}:/engines:ro", "--volume", f"{photo}:/photo.jpg:ro")
    run = ("run", "--rm", "--health-interval", "disable", *HARDENED, *mounts, image)
    inside = predict(store.command("podman", *run), f"/engines/{engine.name}", "/photo.jpg")
    compare(inside, outside)
    print(f"{engine.name}: {outside[0]['label']}, {outside[0]['probability']:.4%}")
    return outside


def check_served(store: Store, name: str, photo: Path, predicted: list[dict[str, Any]]) -> None:
    """Fail unless the server in a container answers as 'predict' does, and may nothing more."""
    answer = json.loads(ask(store, name, "/classify", "--data-binary", f"@{photo}"))
    compare(answer["predictions"], predicted)
    if "</html>" not in ask(store, name, "/"):
        raise ContainerTestError("there is no page at /: its files are not in the image")
    check_inside(json.loads(store.podman("exec", name, "python", "-c", LOOK)))


def check(store: Store, options: argparse.Namespace) -> None:
    """All of it, step by step."""
    began = time.monotonic()

    def step(words: str) -> None:
        print(f"== {words}  [{time.monotonic() - began:.0f} s]", flush=True)

    step(f"The base: {options.base or f'Debian {SUITE} with Python'}")
    base = (
        store.podman("pull", "--quiet", options.base).strip() if options.base else make_base(store)
    )
    step(f"Build the {options.flavour} image")
    image = build(store, base, options.flavour)
    size, below = (
        int(store.podman("image", "inspect", "--format", "{{.Size}}", name))
        for name in (image, base)
    )
    print(f"size: {size / 1e6:.0f} MB, of which the base has {below / 1e6:.0f} MB")
    check_size(size, options.flavour)

    step("What 'predict' says of a photograph here and in the image")
    engines, photo = make_engines(store.folder, options.flavour), photograph(store.folder)
    predicted = [check_predict(store, image, engine, photo) for engine in engines]

    step("Serve: read-only, no capabilities, no network")
    for engine, expected in zip(engines, predicted, strict=True):
        with served(store, image, engine.parent) as name:
            check_served(store, name, photo, expected)
            print(f"{engine.name}: stopped with SIGTERM, exit 0 after {stop(store, name):.1f} s")

    step("Several engines, and none")
    engine, empty = engines[0], store.folder / "none"
    empty.mkdir()
    check_refusal(store, image, empty, "error: ", "/engines")
    shutil.copytree(engine, engine.parent / "another")
    check_refusal(store, image, engine.parent, "error: ", "another", engine.name)
    step("Passed")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/container-test", description=__doc__)
    flavours = sorted(
        file.stem.partition("-")[2] for file in ROOT.glob("requirements/serve-*.lock")
    )
    parser.add_argument("--flavour", choices=flavours, default="cpu", help="default: cpu")
    parser.add_argument("--base", help="image to build on; default: a Debian made here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where anything is not as it should be."""
    options = parse(arguments)
    if problem := missing([tool for tool in TOOLS if tool != "debootstrap" or not options.base]):
        print(f"error: {problem}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then, too
    store = Store(folder=Path(tempfile.mkdtemp(prefix="container-test-", dir="/var/tmp")))
    try:
        check(store, options)
    except ContainerTestError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    finally:
        store.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
