"""``parnet-deploy export`` as a user calls it, with bad input and interruptions."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from commands import call, one_sentence
from conftest import DATA, Cli, tiny_network, tiny_spec
from parity import relative_error

from parnet_deploy.bundle import LABELS, MODEL_GRAPH, ModelBundle, open_model
from parnet_deploy.net import TrainingFacts, save_checkpoint
from parnet_deploy.spec import DeployForm, Preprocessing, encode

OFFICIAL = DATA / "official_tiny_silu.pth.tar"
TINY = (
    *("--variant", "s", "--widths", "8,16,24,32", "--blocks", "1,1,2"),
    *("--image-size", "64", "--classes", "7"),
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exported(capsys: Capture, *arguments: object, name: str = "parnet-s") -> ModelBundle:
    result = call(capsys, "export", *arguments)
    assert result.status == 0, result.err
    return open_model(Path("models") / name)


# As it should be


def test_every_field_of_a_spec_from_a_file(capsys: Capture) -> None:
    spec = tiny_spec(name="mine", stem_widths=(4,), stem_strides=(1, 2), last_stride=1, bn_eps=1e-3)
    Path("mine.json").write_bytes(encode(spec))
    bundle = exported(capsys, "--variant", "mine.json", name="parnet-mine")
    assert bundle.manifest.spec == spec
    changed = exported(
        capsys, "--variant", "mine.json", "--classes", 3, "--output", "models/three", name="three"
    )
    assert changed.manifest.spec.classes == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ("cannot read the spec in spec.json",)),
        (encode(tiny_spec()).decode().replace("tiny", "../../away"), ("spec.json", "'../../away'")),
        ("{", ("spec.json", "variants --json")),
        ('{"name": "x"}', ("spec.json", "stem_widths")),
    ],
)
def test_a_spec_that_is_none(capsys: Capture, text: str | None, parts: tuple[str, ...]) -> None:
    if text is not None:
        Path("spec.json").write_text(text)
    one_sentence(call(capsys, "export", "--variant", "spec.json"), 2, *parts)


def test_untrained_weights_and_saying_so(cli: Cli, tmp_path: Path) -> None:
    result = cli("export", *TINY)
    assert result.returncode == 0, result.stderr
    bundle = open_model(tmp_path / "models" / "parnet-s")
    assert bundle.manifest.source.kind == "untrained"
    assert "UNTRAINED" in bundle.manifest.warnings[0]

    steps = result.stderr.splitlines()
    assert "UNTRAINED weights from seed 0" in steps[0], "before the work"
    assert "WARNING The weights are seeded and UNTRAINED" in steps[-1], "and after it"
    for step in ("fuse:", "write:", "prove:", "proved: whole graph within"):
        assert any(line.strip().startswith(step) for line in steps)
    first, *table, last = result.stdout.splitlines()
    assert first.startswith("models/parnet-s: depth 9, 0.")
    assert "GFLOP at 64x64" in first
    assert any(
        "stream1" in row and "merge1 [16, 8, 8]" in row and "4.0 KiB" in row for row in table
    )
    assert last == "next: parnet-deploy build-engine models/parnet-s --split-streams"


def test_an_authors_checkpoint_gives_their_answers(capsys: Capture) -> None:
    """The golden answers, from the exported file, through the command line."""
    size = ("--image-size", "64x96", "--batch", "2")
    result = call(capsys, "export", "--checkpoint", OFFICIAL, *size)
    assert result.status == 0, result.err
    assert "WARNING" not in result.err
    assert "the moving average of its weights, silu, 1000 classes" in result.err
    bundle = open_model(Path("models/parnet-custom"))
    assert bundle.manifest.source.kind == "official"
    assert bundle.manifest.source.ema is True
    assert bundle.manifest.warnings == ()
    assert bundle.labels[0] == "tench"
    with np.load(DATA / "official_tiny_silu.npz") as golden:
        session = onnxruntime.InferenceSession(
            bundle.file(MODEL_GRAPH), providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(None, {"images": golden["input"]})
        expected = torch.from_numpy(golden["logits"])
    assert relative_error(torch.from_numpy(logits), expected) < 1e-4


def test_an_own_checkpoint_brings_labels_and_preprocessing(capsys: Capture) -> None:
    preprocessing = Preprocessing(size=(64, 64), crop_ratio=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    labels = tuple("abcdefg")
    facts = TrainingFacts(labels=labels, preprocessing=preprocessing)
    save_checkpoint(tiny_network(), Path("net.safetensors"), facts)
    bundle = exported(capsys, "--checkpoint", "net.safetensors", name="parnet-tiny")
    assert bundle.labels == labels
    assert bundle.manifest.preprocessing == preprocessing
    assert bundle.manifest.source.kind == "parnet-deploy"


def test_every_option_ends_in_the_manifest(capsys: Capture) -> None:
    Path("names.txt").write_text("\n".join("abcde"))
    options = (
        "--variant", "m", "--streams", "2", "--widths", "8,16,24", "--blocks", "2,1",
        "--activation", "relu", "--no-squeeze", "--classes", "5", "--image-size", "64x32",
        "--batch", "1:2:4", "--stem", "share", "--softmax", "--preprocess", "--opset", "20",
        "--identity-bn", "fold", "--squeeze-op", "conv", "--join", "concat", "--seed", "3",
        "--layout", "nchw", "--precision", "fp16",
        "--labels", "names.txt", "--output", "deep/down/net",
    )  # fmt: skip
    assert call(capsys, "export", *options).status == 0
    bundle = open_model(Path("deep/down/net"))
    manifest, spec = bundle.manifest, bundle.manifest.spec
    assert manifest.name == "net"
    assert (spec.stream_widths, spec.last_width, spec.stream_blocks) == ((8, 16), 24, (2, 1))
    assert (spec.activation, spec.squeeze, spec.classes) == ("relu", False, 5)
    assert (spec.image_size, manifest.preprocessing.size) == ((64, 32), (64, 32))
    assert (manifest.batch.min, manifest.batch.opt, manifest.batch.max) == (1, 2, 4)
    assert [stage.name for stage in manifest.stages] == ["stem", "stream1", "stream2", "fusion"]
    assert manifest.outputs[0].name == "probabilities"
    assert manifest.inputs[0].dtype == "uint8"
    assert manifest.opset == 20
    assert manifest.form == DeployForm(identity_bn="fold", squeeze="conv", join="concat")
    assert manifest.precision == "fp16"
    assert {cut.tensor.dtype for cut in manifest.cuts} == {"float16"}
    assert manifest.source.seed == 3
    assert bundle.labels == tuple("abcde")


def test_a_depth_and_the_spec_read_once(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.json").write_bytes(encode(tiny_spec(name="mine")))
    reads = []
    read = Path.read_bytes

    def counted(path: Path) -> bytes:
        if path.name == "mine.json":
            reads.append(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    bundle = exported(capsys, "--variant", "mine.json", "--depth", 10, name="parnet-mine")
    assert bundle.manifest.spec.stream_blocks == (3, 3, 3)
    assert len(reads) == 1, "what was checked first is what was exported"


def test_the_default_form_is_that_of_the_backend(capsys: Capture) -> None:
    assert exported(capsys, *TINY).manifest.form == DeployForm(squeeze="gemm", layout="nhwc")
    again = exported(capsys, *TINY, "--for", "onnxruntime", "--force")
    assert again.manifest.form == DeployForm(squeeze="gemm")


def test_a_path_with_brackets_and_spaces_is_printed_as_it_is(capsys: Capture) -> None:
    result = call(capsys, "export", *TINY, "--output", "a [red] b")
    assert result.status == 0
    assert result.out.splitlines()[0].startswith("a [red] b: ")
    assert "build-engine 'a [red] b' --split-streams" in result.out


# Bad input


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--variant or --checkpoint"]),
        (["--variant", "xxl"], ["no variant 'xxl'", "'xl'"]),
        (["--variant", "s", "--image-size", "100"], ["multiple of 32", "100x100"]),
        (["--variant", "s", "--image-size", "64x100"], ["multiple of 32", "64x100"]),
        (["--variant", "s", "--image-size", "0"], ["multiple of 32"]),
        (["--variant", "s", "--image-size", "-32"], ["multiple of 32"]),
        (["--variant", "s", "--image-size", "big"], ["224 or 192x320", "'big'"]),
        (["--variant", "s", "--image-size", "1x2x3"], ["'1x2x3'"]),
        (["--variant", "s", "--widths", "8,16,24"], ["4 for this network, not 3: 8,16,24"]),
        (
            ["--variant", "s", "--streams", "1", "--widths", "8,16,24"],
            ["2 for this network, not 3"],
        ),
        (["--variant", "s", "--widths", "8,18,24,32"], ["multiples of 4"]),
        (["--variant", "s", "--widths", "wide"], ["--widths takes whole numbers", "'wide'"]),
        (["--variant", "s", "--streams", "5"], ["1 to 4 streams, not 5"]),
        (["--variant", "s", "--streams", "0"], ["1 to 4 streams, not 0"]),
        (["--variant", "s", "--depth", "8"], ["a depth of at least 9", "not 8"]),
        (["--variant", "s", "--depth", "9", "--blocks", "1,2,2"], ["--depth and --blocks"]),
        (["--variant", "s", "--blocks", "4,5"], ["one number of blocks per stream"]),
        (["--variant", "s", "--blocks", "4,0,5"], ["at least one block"]),
        (["--variant", "s", "--batch", "0"], ["1 <= MIN <= OPT <= MAX"]),
        (["--variant", "s", "--batch", "4:2:1"], ["not 4:2:1"]),
        (["--variant", "s", "--batch", "1:2"], ["N or MIN:OPT:MAX", "'1:2'"]),
        (["--variant", "s", "--classes", "0"], ["at least one class"]),
        (["--variant", "s", "--opset", "17"], ["--opset"]),
        (["--variant", "s", "--activation", "gelu"], ["--activation", "'silu', 'relu'"]),
        (["--variant", "s", "--labels", "one.txt"], ["1000 classes need as many labels, not 1"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_wrong_options(capsys: Capture, arguments: list[str], parts: list[str]) -> None:
    Path("one.txt").write_text("one")
    if "one.txt" in arguments:
        arguments = [*arguments, "--widths", "8,16,24,32", "--image-size", "32"]
    one_sentence(call(capsys, "export", *arguments), 2, *parts)
    assert not Path("models").exists()


def test_labels_that_cannot_be_read(capsys: Capture) -> None:
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"\xff\xfe")
    for name, words in {
        "missing.txt": "No such file",
        "empty.txt": "no labels in empty.txt",
        "binary.txt": "not UTF-8",
    }.items():
        result = call(capsys, "export", "--variant", "s", "--labels", name)
        one_sentence(result, 1, name, words)
        assert not Path("models").exists()


@pytest.mark.parametrize(
    ("name", "more", "parts"),
    [
        ("missing.pth.tar", [], ["no checkpoint file at missing.pth.tar"]),
        ("text.pth.tar", [], ["cannot read text.pth.tar"]),
        ("text.safetensors", [], ["cannot read text.safetensors"]),
        ("half.pth.tar", [], ["cannot read half.pth.tar"]),
        ("resnet.pth", [], ["not a checkpoint of a ParNet", "conv1.weight"]),
        (OFFICIAL, ["--variant", "m"], ["does not fit variant 'm'", "misshapen", "it would fit"]),
        (OFFICIAL, ["--classes", "10"], ["1000 classes", "10 classes"]),
        (OFFICIAL, ["--no-squeeze"], ["extra", "inits.0.0.block.se.cvsig.conv.weight"]),
        (OFFICIAL, ["--image-size", "100"], ["multiple of 32"]),
        (OFFICIAL, ["--streams", "2"], ["does not fit"]),
    ],
    ids=str,
)
def test_checkpoints_that_do_not_fit(
    capsys: Capture, name: str, more: list[str], parts: list[str]
) -> None:
    Path("text.pth.tar").write_text("not a checkpoint")
    Path("text.safetensors").write_text("not a checkpoint")
    Path("half.pth.tar").write_bytes(OFFICIAL.read_bytes()[:100_000])
    torch.save({"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(3)}, "resnet.pth")
    result = call(capsys, "export", "--checkpoint", name, *more)
    one_sentence(result, 2 if "multiple of 32" in parts else 1, *parts)
    assert not Path("models").exists()


def test_an_existing_output_is_kept_unless_forced(capsys: Capture) -> None:
    before = exported(capsys, *TINY)
    result = call(capsys, "export", *TINY, "--seed", "1")
    one_sentence(result, 1, "models/parnet-s exists already; give --force to replace it")
    assert open_model(before.path).manifest == before.manifest
    assert exported(capsys, *TINY, "--seed", "1", "--force").manifest.source.seed == 1


@pytest.mark.parametrize("place", [[], ["--output", "models/parnet-s"]])
def test_an_existing_output_is_refused_before_anything_is_made(
    capsys: Capture, place: list[str]
) -> None:
    Path("models/parnet-s").mkdir(parents=True)
    result = call(capsys, "export", "--variant", "parnet-s", *place)
    one_sentence(result, 1, "models/parnet-s exists already")
    assert "make:" not in result.err


def test_force_never_replaces_what_is_no_bundle(capsys: Capture) -> None:
    Path("precious").mkdir()
    Path("precious/file").write_text("mine")
    result = call(capsys, "export", *TINY, "--output", "precious", "--force")
    one_sentence(result, 1, "precious", "--force does not replace it")
    assert Path("precious/file").read_text() == "mine"


def test_an_output_that_cannot_be_written(capsys: Capture) -> None:
    Path("file").write_text("mine")
    one_sentence(call(capsys, "export", *TINY, "--output", "file/net"), 1, "is not a folder")
    one_sentence(call(capsys, "export", *TINY, "--output", "/proc/net-x"), 1, "/proc/net-x")


def test_without_torch_it_says_what_to_install(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    result = call(capsys, "export", *TINY)
    one_sentence(result, 1, "export needs torch, which is not installed", "'parnet-deploy[export]'")
    assert "make:" not in result.err


def test_its_help_is_there_without_torch(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    without = {"PYTHONPATH": str(tmp_path / "absent")}
    assert cli("export", "-h", env=without).returncode == 0


# What the world does meanwhile


SLOW_PROOF = """
import sys, time
from parnet_deploy.cli.main import run
from parnet_deploy.export import model
model.prove = lambda *arguments: time.sleep(60)
sys.exit(run(sys.argv[1:]))
"""


def interrupted(folder: Path, how: signal.Signals) -> subprocess.Popen[str]:
    """Export in a process of its own, and signal it when all is written and nothing in place."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PROOF, "export", *TINY],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip().startswith("prove:"):
            break
    assert [path.name[:10] for path in (folder / "models").iterdir()] == [".parnet-s."]
    process.send_signal(how)
    return process


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_leaves_nothing(
    tmp_path: Path, how: signal.Signals, status: int, word: str
) -> None:
    process = interrupted(tmp_path, how)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status, said
    assert said.splitlines()[-1] == f"{word}; nothing was left half-written"
    assert "Traceback" not in said
    assert not any((tmp_path / "models").iterdir())


def test_a_kill_leaves_nothing_under_the_name_and_the_next_run_tidies_up(
    tmp_path: Path, capsys: Capture
) -> None:
    process = interrupted(tmp_path, signal.SIGKILL)
    process.communicate(timeout=120)
    (left,) = (tmp_path / "models").iterdir()
    assert left.name.startswith(".parnet-s.")
    exported(capsys, *TINY)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["parnet-s"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=4m tmpfs '{folder}'"
    if subprocess.run(mount, shell=True, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here; tests/test_bundle.py limits sizes instead")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(capsys: Capture, small_disk: Path) -> None:
    """Full while the weights, the checkpoint or the graphs are written: each ends the same way."""
    for size in (3_900, 3_300, 2_700, 2_000):  # KiB that are taken already
        filler = small_disk / "filler"
        filler.write_bytes(bytes(size * 1024))
        result = call(
            capsys, "export", *TINY, "--widths", "32,64,96,128", "--output", small_disk / "net"
        )
        one_sentence(result, 1, "No space left on device")
        assert list(small_disk.iterdir()) == [filler]
    filler.unlink()
    assert call(capsys, "export", *TINY, "--output", small_disk / "net").status == 0


def test_labels_are_one_a_line(capsys: Capture) -> None:
    bundle = exported(capsys, *TINY)
    assert (bundle.path / LABELS).read_text() == "".join(f"class {i}\n" for i in range(7))
    assert json.loads((bundle.path / "manifest.json").read_text())["name"] == "parnet-s"
