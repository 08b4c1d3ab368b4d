"""``inspect``: what stands in a bundle is what is shown of it."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import call_and_close
from conftest import Cli, clean_error, export_tiny

from parnet_deploy.bundle import BatchRange, EngineBundle, ModelBundle, open_bundle, open_model
from parnet_deploy.cli import main
from parnet_deploy.cli.inspection import Inspection, inspect_bundle
from parnet_deploy.cli.picture import picture_of
from parnet_deploy.engine import BuildOptions, build_engine, make_builder
from parnet_deploy.spec import Backend, count

SVG = "{http://www.w3.org/2000/svg}"


def build(model: ModelBundle, final: Path, backend: Backend, *, split: bool) -> EngineBundle:
    provider = "cpu" if backend == "onnxruntime" else "auto"
    gpus = ("8.6",) if backend == "tensorrt-rtx" else ()
    options = BuildOptions(provider=provider, compute_capabilities=gpus)
    return build_engine(model, final, make_builder(backend, options, split=split), split=split)


@pytest.fixture(scope="module")
def engines(
    tiny_bundle: ModelBundle,
    tiny_bundle_dynamic: ModelBundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, EngineBundle]:
    """Engines of both kinds, whole and split. Read only."""
    folder = tmp_path_factory.mktemp("engines")
    return {
        "ort-split": build(tiny_bundle, folder / "ort-split", "onnxruntime", split=True),
        "ort-share": build(tiny_bundle_dynamic, folder / "ort-share", "onnxruntime", split=True),
        "rtx-whole": build(tiny_bundle, folder / "rtx-whole", "tensorrt-rtx", split=False),
    }


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main.run(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def operators(path: Path) -> dict[str, int]:
    """A graph's nodes by operator, counted with onnx."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return dict(Counter(f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes))


def test_a_models_layers_and_weights_are_those_of_its_graphs(tiny_bundle: ModelBundle) -> None:
    found = inspect_bundle(tiny_bundle)
    names = ["whole", "stream1", "stream2", "stream3", "fusion"]
    assert [part.name for part in found.parts] == names
    for part in found.parts:
        path = tiny_bundle.path / part.file
        assert part.kinds == operators(path)
        assert part.bytes == path.stat().st_size
        assert part.layers is None
        weights: Counter[str] = Counter()
        for tensor in onnx.load(path).graph.initializer:
            array = onnx.numpy_helper.to_array(tensor, base_dir=str(path.parent))
            weights[array.dtype.name] += array.size
        assert part.weights == weights
    assert found.counts == count(tiny_bundle.manifest.spec)
    assert found.untrained is True
    assert found.stem == "replicate"
    assert found.model is None
    assert found.unknown == ()


def test_a_models_cuts_are_its_contracts(tiny_bundle_dynamic: ModelBundle) -> None:
    found = inspect_bundle(tiny_bundle_dynamic)
    assert [(cut.tensor, cut.bytes, cut.source, cut.target) for cut in found.cuts] == [
        (cut.tensor, cut.bytes, cut.source, cut.target) for cut in tiny_bundle_dynamic.manifest.cuts
    ]


@pytest.mark.parametrize(("engine", "model"), [("ort-split", 1), ("ort-share", 4)])
def test_an_engines_cuts_and_blocks_are_its_models(
    engine: str, model: int, engines: dict[str, EngineBundle], request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue("tiny_bundle" if model == 1 else "tiny_bundle_dynamic")
    expected, found = inspect_bundle(source), inspect_bundle(engines[engine])
    assert set(found.cuts) == set(expected.cuts)
    assert found.stem == expected.stem
    blocks = {part.name: part.blocks for part in expected.parts if part.name != "whole"}
    assert {part.name: part.blocks for part in found.parts} == blocks
    assert all(part.device == "cpu" for part in found.parts)


def test_bytes_of_a_cut_are_for_one_image_whatever_the_batch(
    tmp_path: Path, tiny_bundle: ModelBundle
) -> None:
    batch = BatchRange(min=3, opt=3, max=3)
    model = export_tiny(tmp_path / "three", batch=batch)
    engine = build(model, tmp_path / "engine", "onnxruntime", split=True)
    one = {cut.tensor.name: cut.bytes for cut in inspect_bundle(tiny_bundle).cuts}
    for bundle in (model, engine):
        assert {cut.tensor.name: cut.bytes for cut in inspect_bundle(bundle).cuts} == one
    for cut in inspect_bundle(model).cuts:
        assert np.prod(cut.tensor.shape[1:]) * 4 == cut.bytes


def test_an_engine_of_onnxruntime_shows_its_optimised_graph(
    engines: dict[str, EngineBundle],
) -> None:
    bundle = engines["ort-split"]
    for part in inspect_bundle(bundle).parts:
        assert part.kinds == operators(bundle.path / part.file)
        assert any(kind.startswith("com.microsoft") for kind in part.kinds)
        sizes = [path.stat().st_size for path in bundle.path.glob(f"{part.name}.*")]
        assert part.bytes == sum(sizes)


def test_a_plan_shows_its_kernels_and_streams(engines: dict[str, EngineBundle]) -> None:
    bundle = engines["rtx-whole"]
    found = inspect_bundle(bundle, layers=True)
    (part,) = found.parts
    (stage,) = bundle.manifest.stages
    assert part.layers is not None
    assert len(part.layers) == part.kernels == stage.kernels
    assert len({layer.stream for layer in part.layers}) == part.streams == stage.streams
    assert sum((part.kinds or {}).values()) == part.kernels
    assert "float" in part.dtypes
    assert found.cuts == ()
    # Each of the network's convolutions is in one kernel.
    computed = {name for layer in part.layers for name in layer.makes}
    assert {"stem1.conv", "merge3.conv", "last.conv"} <= computed


def test_a_plan_that_tells_nothing_is_shown_with_what_was_counted(
    tmp_path: Path, engines: dict[str, EngineBundle]
) -> None:
    copy = copied(engines["rtx-whole"].path, tmp_path)
    (copy / "whole.plan").write_bytes(b"a plan of TensorRT, which holds no program's text")
    bundle = open_bundle(copy, check=False)
    found = inspect_bundle(bundle, layers=True)
    assert found.parts[0].kernels == engines["rtx-whole"].manifest.stages[0].kernels
    assert found.parts[0].kinds is None
    assert "without TensorRT" in found.unknown[0]


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_the_model_of_an_engine_is_missed_and_told_from_another(
    tmp_path: Path, tiny_bundle: ModelBundle
) -> None:
    model = open_model(copied(tiny_bundle.path, tmp_path))
    engine = build(model, tmp_path / "engine", "onnxruntime", split=False)
    assert state(engine) == "unchanged"
    (model.path / "manifest.json").write_bytes(
        (model.path / "manifest.json").read_bytes().replace(b'"seed": 0', b'"seed": 7')
    )
    assert state(engine) == "changed"
    shutil.rmtree(model.path)
    assert state(engine) == "missing"


def state(engine: EngineBundle) -> str:
    found = inspect_bundle(engine)
    assert found.model is not None
    return found.model.state


def test_tables_show_it(tiny_bundle: ModelBundle, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, tiny_bundle.path)
    found = inspect_bundle(tiny_bundle)
    assert "UNTRAINED, from seed 0" in text
    assert "WARNING" in text
    assert "stem1-2, stream1_block1-2, merge1" in text
    rows = [line.split() for line in text.splitlines() if line]
    for cut in found.cuts:
        names = [cut.tensor.name, cut.source, cut.target]
        assert any(row[:3] == names and row[-1] == f"{cut.bytes:,}" for row in rows)
    for name, record in tiny_bundle.manifest.files.items():
        assert any(line.split()[:1] == [name] for line in text.splitlines()), name
        assert record.sha256[:12] in text
    conv = next(part for part in found.parts if part.name == "fusion").kinds
    assert conv is not None
    assert f"Conv {conv['Conv']}" in text


def test_layers_are_listed_when_asked_for(
    engines: dict[str, EngineBundle], capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, engines["rtx-whole"].path, "--layers")
    assert "stem1.conv" in text
    assert "stem1.conv" not in run(capsys, engines["rtx-whole"].path)
    text = run(capsys, engines["ort-split"].path, "--layers")
    assert "fusion: operators" in text


def test_json_is_the_whole_inspection(
    engines: dict[str, EngineBundle], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(run(capsys, engines["ort-share"].path, "--json"))
    assert found["manifest"]["name"] == "ort-share"
    assert found["untrained"] is True
    assert found["stem"] == "share"
    assert [part["name"] for part in found["parts"]] == [
        "stem",
        "stream1",
        "stream2",
        "stream3",
        "fusion",
    ]
    assert all(type(cut["bytes"]) is int for cut in found["cuts"])


@pytest.mark.parametrize("kind", ["model", "ort-split", "ort-share", "rtx-whole"])
def test_the_picture_shows_stages_devices_and_cuts(
    kind: str,
    tiny_bundle: ModelBundle,
    engines: dict[str, EngineBundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tiny_bundle if kind == "model" else engines[kind]
    target = tmp_path / "network.svg"
    run(capsys, bundle.path, "--svg", target)
    root = ET.fromstring(target.read_text(encoding="utf-8"))
    found = inspect_bundle(bundle)
    regions = [path.get("data-stage") for path in root.iter(f"{SVG}path") if path.get("data-stage")]
    stages = [part.name for part in found.parts if part.name != "whole"] or ["whole"]
    assert regions == stages
    marks = [group for group in root.iter(f"{SVG}g") if group.get("class") == "cut-mark"]
    assert Counter(group.findtext(f"{SVG}title") for group in marks) == Counter(
        cut.tensor.name for cut in found.cuts
    )
    assert "UNTRAINED WEIGHTS" in [text.text for text in root.iter(f"{SVG}text")]
    written = "".join(root.itertext())
    if kind == "rtx-whole":
        part = found.parts[0]
        assert f"cuda:0  ·  {part.kernels} kernels" in written
    if kind.startswith("ort"):
        assert "cpu" in written


def test_a_picture_names_what_comes_out(tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "soft", softmax=True)
    assert picture_of(inspect_bundle(model)).output == "probabilities"


def test_a_picture_is_replaced_only_with_force(
    tiny_bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "network.svg"
    target.write_text("mine")
    assert main.run(["inspect", str(tiny_bundle.path), "--svg", str(target)]) == 1
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    run(capsys, tiny_bundle.path, "--svg", target, "--force")
    assert target.read_text().startswith("<?xml")
    assert [path.name for path in tmp_path.iterdir()] == ["network.svg"]


def test_a_picture_that_cannot_be_written(
    tiny_bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "absent" / "network.svg"
    assert main.run(["inspect", str(tiny_bundle.path), "--svg", str(target)]) == 1
    captured = capsys.readouterr()
    assert f"cannot write {target}" in captured.err
    assert captured.out == ""


def test_without_onnx_it_says_what_would_be_shown(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    text = run(capsys, tiny_bundle.path)
    assert "not shown: onnx is not installed" in text
    assert "merge1" in text
    found: Inspection = inspect_bundle(tiny_bundle)
    assert all(part.kinds is None and part.weights is None for part in found.parts)


def test_a_closed_pipe_is_no_error(tiny_bundle: ModelBundle) -> None:
    assert call_and_close("inspect", tiny_bundle.path, stream="stdout") == 0


@pytest.mark.parametrize("fault", ["flipped", "missing", "newer", "cut short"])
def test_a_damaged_bundle_is_one_clear_sentence(
    fault: str, tiny_bundle: ModelBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(tiny_bundle.path, tmp_path)
    graph, manifest = copy / "stages" / "stream2.onnx", copy / "manifest.json"
    data = bytearray(graph.read_bytes())
    if fault == "flipped":
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    elif fault == "cut short":
        graph.write_bytes(data[:-10])
    elif fault == "missing":
        graph.unlink()
    else:
        text = manifest.read_text().replace('"format_version": 1', '"format_version": 99')
        manifest.write_text(text)
    assert main.run(["inspect", str(copy)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert ("stream2.onnx" in line) == (fault != "newer")
    assert ("manifest format 99" in line) == (fault == "newer")


def test_as_a_user_calls_it_without_torch(
    cli: Cli, tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    shadow = tmp_path / "shadow" / "torch"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise RuntimeError('inspect imported torch')")
    env = {"PYTHONPATH": str(shadow.parent)}
    result = cli("inspect", tiny_bundle.path, "--svg", tmp_path / "drawn.svg", env=env)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "drawn.svg" in result.stderr
    assert (tmp_path / "drawn.svg").is_file()
    clean_error(cli("inspect", tmp_path / "nowhere", env=env), "there is no bundle", "nowhere")
