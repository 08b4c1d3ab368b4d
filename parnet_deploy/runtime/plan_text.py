"""What a TensorRT RTX plan says about itself: its kernels and the streams they run in.

A plan holds the program that its runtime interprets, as text: a header, the tensors' descriptors
and ``main``, a list of instructions. It needs neither TensorRT nor a GPU to be read. The format is
not documented; what is said here was found in plans of TensorRT RTX 1.7 and is checked against the
counts in docs/kernel-counts.md. A plan in which it is not found tells nothing.

TensorRT's own plans (flavour ``tensorrt``) keep only some of their layers in such programs: its
engine inspector is asked instead (`engine.tensorrt.inspect`, `runtime.plan_types`).
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parnet_deploy.errors import EngineError

_MAGIC = b"NLYM"
"""Starts a program: four bytes, four of a version, eight of the text's length, the text."""

_LENGTH_AT, _TEXT_AT = 8, 16
_TEXT_START = b"header {\n"

_NOT_LAUNCHED = frozenset({"signal", "wait", "shape_call"})
"""Instructions without a kernel: events that order the streams, and shapes computed on the host."""

_KERNELS = frozenset({"function", "runtime_function", "corrltn", "runtime_fusion"})
"""Instructions with a kernel that are known."""

_MOVES = "__myl_Move"
"""A kernel that copies what the network reads: of no node, so it names none."""

_VERSIONS = frozenset({"4", "5"})
"""Versions of a program's text that are known: of fused kernels' and of plans'."""

_KNOWN_SECTIONS = frozenset({"header", "descriptors", "main", "shape_main"})

_ANY_GPU = "*"
"""The GPUs of a program that is the inside of one fused kernel, not a list of kernels."""

_INSTRUCTION = re.compile(r"\s+(\w+)=\{ (.*)\}\s*")
_SECTION = re.compile(r"(\w+) \{\s*")
_NAME = re.compile(r'\bname="?([^"\s]+)')
_STREAM = re.compile(r"\bstream=(\d+)")
_EVENT = re.compile(r"\bevent=(\d+)")
_LAYERS = re.compile(r'\blayers="([^"]*)"')
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_BEHIND = re.compile(r"(?:__gemm_from_conv1x1|\s)*")
"""What may stand behind the names of layers: what was made of a node."""

_TYPE = re.compile(r"\btype=(\w+)")
_QUOTED = re.compile(r'\bname="([^"]*)"')
_READ = re.compile(r"\binput=\{([^}]*)\}")
_ARGUMENT = re.compile(r'"([^"]*)"')
_VERSION = re.compile(r"^\s*version = (\w+)", re.MULTILINE)
_LABEL = re.compile(r"\s*(?:label \w+:)?\s*")
_GPUS = re.compile(r"\baccelerators=\{([^}]*)\}")
_TF32 = re.compile(r"\btf32=(\d)")
_SCRATCH = "__scratch_space"

_LONGEST = 300
"""Characters of an instruction that are quoted."""

UNTOLD = "?"
"""The element type of what a kernel reads where the program does not tell it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One launch.

    Attributes:
        kind: the instruction, such as ``corrltn`` (a convolution) or ``function``.
        name: the kernel's name.
        stream: which stream it runs in.
        layers: names of the ONNX nodes it computes, in whole or in part.
        reads: element types of what it reads, in order, where the program tells; the plan's own
            names.
    """

    kind: str
    name: str
    stream: int
    layers: tuple[str, ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanText:
    """What a plan says about itself.

    Attributes:
        kernels: its launches, in order.
        compute_capabilities: GPUs that its program names, such as ``"8.6"``. A plan for "Ampere
            and later" names 8.0.
        tf32: whether TF32 is allowed, or None where the plan does not say.
        dtypes: element types of the tensors that its kernels read and write, sorted; the plan's
            own names, such as ``float`` and ``half``.
        chain: kernels that run one after the other at least: the longest way through the streams,
            each of them in its order, from signals to what waits for them. None where it waits
            for what is not signalled before.
        inside: the instructions of kernels that several were fused into when it was built
            (``runtime_fusion``), each such kernel being a program of its own. They are no
            launches.
        unknown: what is not known in it, each once; where that is nothing, a node that no kernel
            names is not in it. It takes all of these to be known: what starts as a program is one;
            the text is of a version in `_VERSIONS` and holds each section once and nothing beside
            them; every line of ``main`` is a label or an instruction of a known kind; and every
            kernel names its nodes, in the form that is known, but for one that copies what the
            network reads. A kernel that several were fused into names the nodes of all of them.
    """

    kernels: tuple[Kernel, ...]
    compute_capabilities: tuple[str, ...]
    tf32: bool | None
    dtypes: tuple[str, ...]
    chain: int | None
    inside: tuple[Kernel, ...]
    unknown: tuple[str, ...]

    @property
    def understood(self) -> bool:
        """Whether nothing in it is unknown."""
        return not self.unknown

    @property
    def streams(self) -> int:
        """How many streams the kernels are spread over."""
        return len({kernel.stream for kernel in self.kernels})


def read_plan_text(path: Path) -> PlanText | None:
    """Read a plan's own text.

    Args:
        path: a plan file.

    Returns:
        What it says, or None where it holds no program that can be read.

    Raises:
        EngineError: the file cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            starts = list(_programs(plan))
    except ValueError:  # an empty file cannot be mapped
        return None
    except OSError as exc:
        raise EngineError(f"cannot read {path}: {exc.strerror or exc}") from exc
    return _read_programs(starts)


def _programs(plan: mmap.mmap) -> Iterator[str | None]:
    """The texts of all programs in a plan; None for what has a program's start and no text.

    Weights may look like such a start.
    """
    at = plan.find(_MAGIC)
    while at >= 0:
        start = at + _TEXT_AT
        length = int.from_bytes(plan[at + _LENGTH_AT : start], "little")
        end = at + 1
        if plan[start : start + len(_TEXT_START)] == _TEXT_START and start + length <= len(plan):
            yield plan[start : start + length].decode("utf-8", errors="replace")
            end = start + length
        else:
            yield None
        at = plan.find(_MAGIC, end)


def _read_programs(found: list[str | None]) -> PlanText | None:
    """Read programs; None is what starts as one and is none."""
    texts = [text for text in found if text is not None]
    unknown = dict.fromkeys(["a program's start without a program"] * (len(texts) < len(found)))
    kernels: list[Kernel] = []
    inside: list[Kernel] = []
    gpus: set[str] = set()
    dtypes: set[str] = set()
    tf32: set[bool] = set()
    chains: list[int | None] = []
    for text in texts:
        sections = _sections(text)
        header = "\n".join(sections.get("header", ()))
        named = _gpus(header)
        unknown |= dict.fromkeys(_unknown(text, sections, fused=_ANY_GPU in named))
        types = dict(_types(sections.get("descriptors", ())))
        if _ANY_GPU in named:
            inside.extend(_kernels(sections.get("main", ()), types))
            continue
        gpus.update(named)
        tf32.update(value == "1" for value in _TF32.findall(header))
        dtypes.update(kind for name, kind in types.items() if _SCRATCH not in name)
        kernels.extend(_kernels(sections.get("main", ()), types))
        chains.append(_chain(sections.get("main", ())))
    if not kernels:
        return None
    return PlanText(
        kernels=tuple(kernels),
        compute_capabilities=tuple(sorted(gpus, key=lambda cc: tuple(map(int, cc.split("."))))),
        tf32=any(tf32) if tf32 else None,
        dtypes=tuple(sorted(dtypes)),
        # Programs run one after the other.
        chain=None if None in chains else sum(chain or 0 for chain in chains),
        inside=tuple(inside),
        unknown=tuple(unknown),
    )


def _unknown(text: str, sections: Mapping[str, tuple[str, ...]], *, fused: bool) -> Iterator[str]:
    """What is not known in a program (`PlanText`).

    Args:
        text: the program.
        sections: the same by section.
        fused: whether it is the inside of a fused kernel: the launch of that names its nodes, so
            its instructions need not be known.
    """
    version = _VERSION.search("\n".join(sections.get("header", ())))
    if version is None or version[1] not in _VERSIONS:
        yield f"version {version[1] if version else 'unsaid'} of a program's text"
    for name in sorted(sections.keys() - _KNOWN_SECTIONS):
        yield f"section '{name}'"
    # Each section has a line before and one behind it: a second of a name, or what is in none,
    # leaves lines over.
    if len(text.strip().split("\n")) != sum(len(lines) + 2 for lines in sections.values()):
        yield "lines outside of sections, or a section that stands twice"
    if fused:
        return
    if "main" not in sections:
        yield "a program without 'main'"
    for line in sections.get("main", ()):
        if not _is_known(line):
            yield f"instruction '{line.strip()[:_LONGEST]}'"


def _is_known(line: str) -> bool:
    """Whether a line is a label, or an instruction that is known and names its nodes."""
    match = _INSTRUCTION.fullmatch(line)
    if match is None:
        return _LABEL.fullmatch(line) is not None
    if match[1] in _NOT_LAUNCHED:
        return True
    layers, name = _LAYERS.search(match[2]), _NAME.search(match[2])
    said = layers[1] if layers else ""
    if match[1] not in _KERNELS or not _BEHIND.fullmatch(_LAYER.sub("", said)):
        return False
    moves = match[1] == "function" and name is not None and name[1] == _MOVES
    return moves or bool(said)


def _sections(text: str) -> dict[str, tuple[str, ...]]:
    """The lines of every section: ``NAME {`` to ``}``, both at the start of a line."""
    sections: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.split("\n"):
        if current is None:
            if match := _SECTION.fullmatch(line):
                current = sections.setdefault(match[1], [])
        elif line.rstrip() == "}":
            current = None
        else:
            current.append(line)
    return {name: tuple(lines) for name, lines in sections.items()}


def _gpus(header: str) -> tuple[str, ...]:
    """Compute capabilities that a header names: ``sm86`` is 8.6."""
    found = _GPUS.search(header)
    names = found[1].split() if found else []
    return tuple(
        f"{name[2:-1]}.{name[-1]}" if re.fullmatch(r"sm\d{2,}", name) else _ANY_GPU
        for name in names
    )


def _types(lines: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Name and element type of every tensor that says both."""
    for line in lines:
        match = _INSTRUCTION.fullmatch(line)
        if match is None:
            continue
        name, kind = _QUOTED.search(match[2]), _TYPE.search(match[2])
        if kind:
            yield name[1] if name else "", kind[1]


def _chain(lines: tuple[str, ...]) -> int | None:
    """The longest way through a program's streams, in kernels."""
    lengths: dict[int, int] = {}
    signalled: dict[int, int] = {}
    for line in lines:
        match = _INSTRUCTION.fullmatch(line)
        if match is None:
            continue
        number, event = _STREAM.search(match[2]), _EVENT.search(match[2])
        stream = int(number[1]) if number else 0
        length = lengths.get(stream, 0)
        if match[1] not in _NOT_LAUNCHED:
            lengths[stream] = length + 1
        elif match[1] == "signal" and event:
            signalled[int(event[1])] = length
        elif match[1] == "wait" and event:
            if int(event[1]) not in signalled:
                return None
            lengths[stream] = max(length, signalled[int(event[1])])
    return max(lengths.values(), default=0)


def _kernels(lines: tuple[str, ...], types: Mapping[str, str]) -> Iterator[Kernel]:
    for line in lines:
        match = _INSTRUCTION.fullmatch(line)
        if match is None or match[1] in _NOT_LAUNCHED:
            continue
        name, stream = _NAME.search(match[2]), _STREAM.search(match[2])
        layers, read = _LAYERS.search(match[2]), _READ.search(match[2])
        names = _ARGUMENT.findall(read[1]) if read else ()
        yield Kernel(
            kind=match[1],
            name=name[1] if name else match[1],
            stream=int(stream[1]) if stream else 0,
            layers=tuple(_LAYER.findall(layers[1])) if layers else (),
            reads=tuple(types.get(name, UNTOLD) for name in names),
        )
