"""Who takes part: three servers and what each is asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_server import WHEEL
from triton_server import install as install_triton

from serving_contest.network import THREADS, Engine
from serving_contest.peers import (
    install_beside_triton,
    install_fastapi,
    versions,
    write_model,
)
from serving_contest.questions import (
    Question,
    body_question,
    file_bytes,
    infer_question,
    upload_question,
)
from serving_contest.rounds import Entry
from serving_contest.servers import Launch, fastapi, ours, triton


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """The network, reading float32 and reading uint8.

    Attributes:
        fp32: reads normalised arrays.
        uint8: reads pixels.
        files: the images as JPEG.
    """

    fp32: Engine
    uint8: Engine
    files: Sequence[bytes]

    @property
    def by_body(self) -> Mapping[str, Engine]:
        """What answers to a body; the models of Triton are called so, too."""
        return {"fp32": self.fp32, "uint8": self.uint8, "jpeg": self.fp32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Servers:
    """How the servers are started.

    Attributes:
        launches: one for each.
        versions: of what they consist of, by server and package.
    """

    launches: Sequence[Launch]
    versions: Mapping[str, Mapping[str, str]]


def entries_of(engines: Engines) -> list[Entry]:
    """All contestants, and what they are asked."""
    entries = [*_of_arrays("fp32", "FP32", engines), *_of_arrays("uint8", "UINT8", engines)]
    fp32 = engines.fp32
    pairs = list(zip(engines.files, fp32.logits, strict=True))

    def enter(name: str, server: str, questions: Iterable[Question]) -> None:
        entries.append(Entry(body="jpeg", name=name, server=server, questions=tuple(questions)))

    for name, server, model in (("ours", "ours-fp32", fp32.name), ("triton", "triton", "jpeg")):
        encoded = [(file_bytes(file), logits) for file, logits in pairs]
        enter(name, server, (infer_question(model, "BYTES", [1], b, right) for b, right in encoded))
    plain = (body_question("/classify", file, "classes", right) for file, right in pairs)
    enter("ours /classify", "ours-fp32", plain)
    enter("fastapi", "fastapi", (upload_question("/classify", f, right) for f, right in pairs))
    return entries


def prepare(engines: Engines, workspace: Path) -> Servers:
    """Install the peers, where they are not yet, and say how all are started.

    Raises:
        PeerError: FastAPI cannot be installed.
        TritonError: Triton cannot.
    """
    fp32, uint8 = engines.fp32, engines.uint8
    python = install_fastapi(workspace / "fastapi", fp32.version)
    found = install_triton(workspace / "triton")
    packages = workspace / "triton-packages"
    install_beside_triton(packages, found.python / "python", fp32.version)
    repository = workspace / "models"
    _write_repository(repository, engines, packages)
    launches = [
        ours("ours-fp32", fp32, workspace),
        ours("ours-uint8", uint8, workspace),
        triton(found.binary, found.backends, found.libraries, found.python, repository),
        fastapi(python, fp32, uint8),
    ]
    said = {
        "ours": {**versions(Path(sys.executable)), "onnxruntime": fp32.version},
        "triton": {"tritonserver": f"2.51 ({WHEEL})", "onnxruntime": fp32.version},
        "fastapi": versions(python),
    }
    return Servers(launches=launches, versions=said)


def _of_arrays(body: str, datatype: str, engines: Engines) -> Iterable[Entry]:
    engine = engines.by_body[body]
    asked = list(zip(engine.inputs, engine.logits, strict=True))
    for name, server, model in (("ours", f"ours-{body}", engine.name), ("triton", "triton", body)):
        tensors = [
            infer_question(model, datatype, a.shape, a.tobytes(), right) for a, right in asked
        ]
        yield Entry(body=body, name=name, server=server, questions=tuple(tensors))
    raw = [body_question(f"/{body}", a.tobytes(), "logits", right) for a, right in asked]
    yield Entry(body=body, name="fastapi", server="fastapi", questions=tuple(raw))


def _write_repository(repository: Path, engines: Engines, packages: Path) -> None:
    """Triton's models, all of the engines' own graphs."""
    shutil.rmtree(repository, ignore_errors=True)
    datatypes = {"fp32": "TYPE_FP32", "uint8": "TYPE_UINT8", "jpeg": "TYPE_STRING"}
    for body, engine in engines.by_body.items():
        is_jpeg = body == "jpeg"
        write_model(
            repository,
            body,
            datatype=datatypes[body],
            dims=(1,) if is_jpeg else engine.inputs[0].shape,
            classes=len(engine.logits[0]),
            parameters={
                "graph": str(engine.graph),
                "packages": str(packages),
                "version": engine.version,
                "threads": str(THREADS),
                "input": "jpeg" if is_jpeg else "array",
            },
        )
