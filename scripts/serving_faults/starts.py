"""What keeps a server from starting: it has to say so in one sentence, and never be ready."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

from serving_faults.bundles import change_manifest, sign
from serving_faults.scenario import NotHereError, Scenario, Side, WrongError
from serving_faults.servers import Server, begun, command_of

OURS = "its repositories have no checksums"
EXPECTED = "exit 1, one sentence that names it"

_SEALED = """
awk '{print $2}' /proc/self/mounts | while read -r point; do
  mount -o remount,bind,ro "$point" 2>/dev/null
done
touch /writable 2>/dev/null && exit 77
touch "$PWD/writable" 2>/dev/null && exit 77
exec "$@"
"""
"""All that is mounted is made read only, in a mount namespace of its own, and a program started."""


def start_scenarios() -> tuple[Scenario, ...]:
    """All of them."""
    engines: dict[str, tuple[Callable[[Path], None], str]] = {
        "a byte of the engine's graph altered": (_altered, "whole.onnx"),
        "the engine's graph cut short": (_cut, "whole.onnx"),
        "the engine's weights missing": (_missing, "whole.weights"),
        "the engine's manifest altered": (_manifest_altered, "manifest.json"),
        "the manifest garbage": (_manifest_garbage, "manifest.json"),
        "a graph that is none, signed": (_no_graph, "whole.onnx"),
        "a graph of other outputs, signed": (_other_outputs, "logits"),
        "a graph of other inputs, signed": (_other_inputs, "images"),
        "the engine of another machine": (_other_machine, "engine"),
    }
    made = [
        Scenario(
            title=title,
            group="starting",
            expected=EXPECTED,
            do=_refusing(damage, named),
            alone=OURS,
        )
        for title, (damage, named) in engines.items()
    ]
    return (
        *made,
        Scenario(title="no engine", group="starting", expected=EXPECTED, do=_no_engine, alone=OURS),
        Scenario(
            title="the port in use",
            group="starting",
            expected="exit 1, one sentence that names it",
            do=_port_in_use,
            alone="it is asked the same in other words",
        ),
        Scenario(
            title="no GPU for an engine that needs one",
            group="starting",
            expected="exit 1, one sentence",
            do=_no_gpu,
            alone="this one has no backend for GPUs",
        ),
        Scenario(
            title="a file system that is read only",
            group="starting",
            expected="it serves; exit 0",
            do=_read_only,
            alone="its Python backend writes into /dev/shm",
        ),
    )


# --- damaged engines ----------------------------------------------------------------------------


def _altered(bundle: Path) -> None:
    file = bundle / "whole.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _cut(bundle: Path) -> None:
    file = bundle / "whole.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def _missing(bundle: Path) -> None:
    (bundle / "whole.weights").unlink()


def _manifest_altered(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace('"softmax": false', '"softmax": true'))


def _manifest_garbage(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\x00garbage")


def _no_graph(bundle: Path) -> None:
    (bundle / "whole.onnx").write_bytes(b"this is no graph")
    sign(bundle, "whole.onnx")


def _other_outputs(bundle: Path) -> None:
    """A graph that gives a class less than the manifest says."""
    file = bundle / "whole.onnx"
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == "logits":
                node.output[number] = "cut_logits"
    ends = {"cut_first": [0], "cut_last": [-1], "cut_axis": [1]}
    for name, value in ends.items():
        tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], value)
        model.graph.initializer.append(tensor)
    cut = onnx.helper.make_node("Slice", ["cut_logits", *ends], ["logits"])
    model.graph.node.append(cut)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, file)
    sign(bundle, file.name)


def _other_inputs(bundle: Path) -> None:
    """A graph that reads one channel where the manifest says three."""
    file = bundle / "whole.onnx"
    model = onnx.load(file, load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.save(model, file)
    sign(bundle, file.name)


def _other_machine(bundle: Path) -> None:
    change_manifest(bundle, lambda content: content["target"].update(architecture="riscv64"))


# --- starting -----------------------------------------------------------------------------------


def _refusing(damage: Callable[[Path], None], named: str) -> Callable[[Side], str]:
    def do(side: Side) -> str:
        with _copy(side) as bundle:
            damage(bundle)
            return refused(command_of(bundle), named)

    return do


def _no_engine(side: Side) -> str:
    return refused(command_of(side.folder / "nothing"), "nothing")


def _port_in_use(side: Side) -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        return refused(command_of(side.model.bundle.path, "--port", port), str(port))


def _no_gpu(side: Side) -> str:
    def on_a_gpu(content: dict[str, Any]) -> None:
        content["target"]["provider"] = "cuda"
        content["stages"][0]["device"] = "cuda:0"

    with _copy(side) as bundle:
        change_manifest(bundle, on_a_gpu)
        return refused(command_of(bundle), "GPU", env={"CUDA_VISIBLE_DEVICES": ""})


def _read_only(side: Side) -> str:
    """As a container with ``--read-only`` has it, and without a /tmp."""
    namespace = ["unshare", "--mount", "--propagation", "private"]
    tried = subprocess.run([*namespace, "true"], capture_output=True, check=False)
    if tried.returncode != 0:
        raise NotHereError("making a mount namespace takes root")
    command = command_of(side.model.bundle.path)
    sealed = [*namespace, "sh", "-c", _SEALED, "sh", *command]
    with begun(sealed, cwd=side.folder) as server:
        server.wait_until_ready()
        if problem := side.model.good_problem(server.port):
            raise WrongError(problem)
        server.stop()
        if (status := server.end()) != 0:
            raise WrongError(f"exit status {status}: {server.last_words()}", "0")
    return "it serves; exit 0"


def refused(command: list[str], named: str, *, env: dict[str, str] | None = None) -> str:
    """What a server says that does not start.

    Raises:
        WrongError: it starts, ends with status 0, or says something else than one sentence with
            `named` in it.
    """
    with begun(command, env=env) as server:
        try:
            status = server.end()
        except subprocess.TimeoutExpired as exc:
            raise WrongError(f"it goes on: {server.last_words()}", EXPECTED) from exc
    _check_words(server, named)
    if status != 1:
        raise WrongError(f"exit status {status}", "1")
    return "exit 1, one sentence"


def _check_words(server: Server, named: str) -> None:
    if any("ready: " in line for line in server.log):
        raise WrongError("it was ready", "that it never is")
    errors = [line for line in server.log if line.startswith("error: ")]
    if len(errors) != 1 or errors[0] != server.last_words():
        raise WrongError(f"it says {server.log}", "one sentence")
    if named not in errors[0]:
        raise WrongError(f"it says '{errors[0]}'", f"that {named} is named")
    if any("Traceback" in line for line in server.log):
        raise WrongError("it shows a traceback", "one sentence")


@contextlib.contextmanager
def _copy(side: Side) -> Iterator[Path]:
    """A copy of the engine, to be damaged."""
    folder = side.folder / "damaged" / "engine"
    shutil.copytree(side.model.bundle.path, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder.parent)
