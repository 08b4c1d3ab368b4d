"""What the serving image is made from, read without a daemon, and what has to be true of it."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml
from packaging.requirements import Requirement

from parnet_deploy.serve.settings import ServeSettings

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "requirements"

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("serve", "ncnn"),
    "openvino": ("serve", "ncnn", "openvino"),
    "cuda": ("serve",),
    "tensorrt": ("serve",),
    "rtx": ("serve", "rtx"),
}
"""The extras of pyproject.toml that a flavour holds besides the base install."""

WITHOUT_CUDA_RUNTIME = {"cpu", "openvino", "rtx"}
"""Flavours with the ONNX Runtime package for CPUs, which is a fifth as large."""

X86 = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
"""The machine that most images run on, as markers see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile."""

    name: str
    words: str


def instructions(text: str) -> list[Instruction]:
    """A Dockerfile's instructions; comments are left out and continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    split = (line.split(maxsplit=1) for line in joined.splitlines())
    return [Instruction(name=name.upper(), words=words) for name, words in split]


def stages(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each stage, by its name."""
    found: dict[str, list[Instruction]] = {}
    for item in instructions(text):
        if item.name == "FROM":
            current = found.setdefault(item.words.split()[-1], [])
        if found:
            current.append(item)
    return found


def dockerfile_problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile of a serving image."""
    found = stages(text)
    final = found[list(found)[-1]]
    last = {item.name: item.words for item in final}
    return [
        *_base_problems(text, found),
        *_process_problems(last),
        *_health_problems(last.get("HEALTHCHECK", "")),
        *_install_problems(found, final),
    ]


def _base_problems(text: str, found: Mapping[str, list[Instruction]]) -> Iterator[str]:
    first = instructions(text)[0]
    if first.name != "ARG" or not first.words.startswith("BASE="):
        yield "BASE is no build argument"
    if len(found) < 2:
        yield "there is one stage only"
    if any(items[0].words.split()[0] != "${BASE}" for items in found.values()):
        yield "a stage stands on something else than BASE"


def _process_problems(last: Mapping[str, str]) -> Iterator[str]:
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", "")):
        yield "its user is not a number, or is root"
    for name in ("ENTRYPOINT", "CMD"):
        if not _is_exec(last.get(name, "")):
            yield f"its {name} has a shell in between"
    if last.get("STOPSIGNAL", "SIGTERM") != "SIGTERM":
        yield "it is not stopped with SIGTERM"


def _health_problems(words: str) -> Iterator[str]:
    _, marker, command = words.partition("CMD ")
    if not marker or not _is_exec(command):
        yield "it has no HEALTHCHECK in exec form"
    elif "/v2/health/ready" not in command:
        yield "its HEALTHCHECK does not ask whether it is ready"


def _install_problems(
    found: Mapping[str, list[Instruction]], final: Iterable[Instruction]
) -> Iterator[str]:
    runs = [item.words for items in found.values() for item in items if item.name == "RUN"]
    parts = [part for run in runs for part in run.split("&&")]
    installs = [part for part in parts if " -m pip " in part]
    if not installs:
        yield "nothing is installed"
    for words in installs:
        from_index = "--require-hashes" in words and "--only-binary :all:" in words
        if not from_index and not ("--no-index" in words and "--no-deps" in words):
            yield f"installed without hashes: {words.strip()}"
    for item in final:
        if item.name == "RUN" or (item.name in {"COPY", "ADD"} and "--from=" not in item.words):
            yield f"the last stage does more than take over what was installed: {item.words}"


def _is_exec(words: str) -> bool:
    try:
        parsed = json.loads(words)
    except json.JSONDecodeError:
        return False
    return isinstance(parsed, list) and all(isinstance(word, str) for word in parsed)


def health_command(text: str) -> list[str]:
    """What a Dockerfile's HEALTHCHECK runs."""
    (words,) = (item.words for item in instructions(text) if item.name == "HEALTHCHECK")
    command: list[str] = json.loads(words.partition("CMD ")[2])
    return command


def copied(text: str) -> list[str]:
    """What a Dockerfile copies from the folder that it is built in, arguments put in."""
    copies = [item.words for item in instructions(text) if item.name == "COPY"]
    sources = [words.split()[:-1] for words in copies if "--from=" not in words]
    return [source.replace("${FLAVOUR}", "cpu") for each in sources for source in each]


def compose_problems(text: str, dockerfile: str) -> list[str]:
    """What is wrong with a compose file that builds a Dockerfile and runs the image."""
    service = yaml.safe_load(text)["services"]["parnet-deploy"]
    (engines,) = service["volumes"]
    arguments, defaults = service["build"]["args"], _defaults(dockerfile)
    more = {"privileged", "cap_add", "user", "network_mode", "pid", "healthcheck"} & set(service)
    stops = int(service["stop_grace_period"].removesuffix("s"))
    rules = {
        "its root file system can be written to": service.get("read_only") is True,
        "the engines can be written to": engines.get("read_only") is True,
        "it keeps capabilities": service.get("cap_drop") == ["ALL"],
        "it may gain privileges": service.get("security_opt") == ["no-new-privileges:true"],
        f"it may more: {', '.join(sorted(more))}": not more,
        "it is open to every network": all(p.startswith("127.0.0.1:") for p in service["ports"]),
        "it is killed before it may take to stop": stops > ServeSettings().grace,
        **{
            f"its {name} is not the Dockerfile's": given == f"${{{name}:-{defaults[name]}}}"
            for name, given in arguments.items()
        },
    }
    return [problem for problem, holds in rules.items() if not holds]


def _defaults(dockerfile: str) -> dict[str, str]:
    given = [item.words for item in instructions(dockerfile) if item.name == "ARG"]
    return dict(words.split("=", 1) for words in given)


def is_ignored(patterns: str, path: str) -> bool:
    """Whether a .dockerignore keeps a file out: the last pattern that fits decides.

    A pattern fits a path, or a folder above it. Reference:
    https://docs.docker.com/build/concepts/context/#dockerignore-files
    """
    ignored = False
    for line in patterns.splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            exception = pattern.startswith("!")
            if _fits(pattern.removeprefix("!"), path):
                ignored = not exception
    return ignored


def _fits(pattern: str, path: str) -> bool:
    places = [PurePosixPath(path), *PurePosixPath(path).parents[:-1]]
    deep = pattern.removeprefix("**/")
    names = [place.name if deep != pattern else str(place) for place in places]
    return any(
        fnmatch.fnmatchcase(name, deep) and name.count("/") == deep.count("/") for name in names
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One package of a lock.

    Attributes:
        requirement: its name, version and marker.
        hashes: how many files it may come from.
    """

    requirement: Requirement
    hashes: int

    @property
    def version(self) -> str | None:
        """Its only version, or None."""
        found = re.fullmatch(r"==([^,*]+)", str(self.requirement.specifier))
        return found[1] if found else None

    def is_on(self, machine: Mapping[str, str]) -> bool:
        """Whether it is installed on a machine."""
        marker = self.requirement.marker
        return marker is None or marker.evaluate(dict(machine))


def pins(lock: str) -> list[Pin]:
    """A lock's packages."""
    lines = [
        line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        words, *hashes = re.split(r"\s--hash=sha256:", line)
        found.append(Pin(requirement=Requirement(words), hashes=len(hashes)))
    return found


def lock_problems(lock: str, flavour: str, tested: str, project: str) -> list[str]:
    """What is wrong with the lock of a flavour, on an x86-64 machine.

    Args:
        lock: its text.
        flavour: which.
        tested: the text of requirements.lock, whose versions the tests ran with.
        project: the text of pyproject.toml.
    """
    here = [pin for pin in pins(lock) if pin.is_on(X86)]
    versions = {pin.requirement.name: pin.version for pin in here}
    tests_ran = {p.requirement.name: p.version for p in pins(tested) if p.is_on(X86)}
    if flavour in WITHOUT_CUDA_RUNTIME:
        tests_ran["onnxruntime"] = tests_ran.pop("onnxruntime-gpu")
    return [
        *(f"{p.requirement.name} has no hash" for p in here if not p.hashes),
        *(f"{name} is not pinned" for name, version in versions.items() if version is None),
        *(f"{name} trains, it does not serve" for name in versions if _trains(name)),
        *_missing(versions, flavour, project),
        *(
            f"{name} is {version}, and the tests ran with {tests_ran[name]}"
            for name, version in versions.items()
            if tests_ran.get(name, version) != version
        ),
    ]


def _trains(name: str) -> bool:
    return name.startswith("torch") or name in {"onnx", "timm", "triton", "scikit-learn"}


def _missing(versions: Mapping[str, str | None], flavour: str, project: str) -> Iterator[str]:
    for wanted in requirements(flavour, project):
        version = versions.get(wanted.name)
        if version is None or version not in wanted.specifier:
            yield f"pyproject.toml wants {wanted}, there is {version}"


def requirements(flavour: str, project: str) -> list[Requirement]:
    """What pyproject.toml asks for on x86-64, in the form that a flavour has it."""
    table = tomllib.loads(project)["project"]
    extras = table["optional-dependencies"]
    lines = [*table["dependencies"], *(line for extra in EXTRAS[flavour] for line in extras[extra])]
    found = [Requirement(line) for line in lines]
    found = [item for item in found if item.marker is None or item.marker.evaluate(X86)]
    if flavour in WITHOUT_CUDA_RUNTIME:
        for item in found:
            item.name = {"onnxruntime-gpu": "onnxruntime"}.get(item.name, item.name)
    if flavour in {"cpu", "openvino"}:
        found = [item for item in found if item.name != "cuda-bindings"]
    return found
