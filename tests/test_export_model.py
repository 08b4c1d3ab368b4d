"""Model bundles: cut into stages, weights stored once, the same bytes each time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import export_tiny, tiny_network, tiny_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import greatest_error, relative_error
from strategies import FORMS, SHAPES, specs

from parnet_deploy.bundle import (
    CHECKPOINT,
    LABELS,
    MODEL_GRAPH,
    WEIGHTS,
    BatchRange,
    ModelBundle,
    ModelManifest,
    Source,
    open_model,
)
from parnet_deploy.errors import OutputExistsError, UsageError
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.export.graph import whole_graph
from parnet_deploy.export.model import UNTRAINED, describe, write_graphs
from parnet_deploy.net import ParNet, fuse, initialise, load_checkpoint
from parnet_deploy.spec import (
    IMAGES,
    Array,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    StemMode,
    variant,
)


def run(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert {spec.name for spec in session.get_inputs()} == feeds.keys()
    return dict(zip(names, session.run(names, feeds), strict=True))


def trial(manifest: ModelManifest, count: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    shape = (count, 3, *manifest.spec.image_size)
    if manifest.inputs[0].dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape).astype(np.float32)


def check_bundle(folder: Path, manifest: ModelManifest) -> None:
    """Stages, fed with what the manifest says they read, make what it says, equal to the whole."""
    for count in {manifest.batch.min, manifest.batch.opt, manifest.batch.max}:
        images = trial(manifest, count)
        (output,) = manifest.outputs
        whole = run(folder / MODEL_GRAPH, {IMAGES: images})[output.name]
        values = {IMAGES: images}
        for stage in manifest.stages:
            given_out = run(folder / stage.file, {s.name: values[s.name] for s in stage.inputs})
            assert given_out.keys() == {spec.name for spec in stage.outputs}
            for spec in stage.outputs:
                assert given_out[spec.name].shape == spec.concrete(count)
                assert given_out[spec.name].dtype == np.dtype(spec.dtype)
            values |= given_out
        np.testing.assert_allclose(
            values[output.name], whole, rtol=0, atol=1e-5 * np.abs(whole).max()
        )
        for cut in manifest.cuts:
            assert cut.bytes * count == values[cut.tensor.name].nbytes
            assert cut.tensor.concrete(count) == values[cut.tensor.name].shape


@pytest.mark.parametrize(
    ("streams", "stem", "batch"),
    [
        (1, "replicate", "fixed"),
        (1, "share", "dynamic"),
        (2, "replicate", "dynamic"),
        (2, "share", "fixed"),
        (3, "replicate", "fixed"),
        (3, "share", "dynamic"),
        (4, "replicate", "dynamic"),
        (4, "share", "fixed"),
    ],
)
def test_stages_joined_equal_the_whole(
    tmp_path: Path, streams: int, stem: StemMode, batch: str
) -> None:
    spec = tiny_spec(stream_blocks=(3, 3, 3)).with_streams(streams)
    changes = {name: getattr(spec, name) for name in ParNetSpec.__slots__}
    sizes = (
        BatchRange(min=1, opt=2, max=3) if batch == "dynamic" else BatchRange(min=2, opt=2, max=2)
    )
    bundle = export_tiny(tmp_path / "net", stem=stem, batch=sizes, changes=changes)
    assert bundle.manifest.spec == spec
    assert [stage.name for stage in bundle.manifest.stages] == [
        *(["stem"] if stem == "share" else []),
        *(f"stream{i}" for i in range(1, streams + 1)),
        "fusion",
    ]
    check_bundle(bundle.path, bundle.manifest)


@settings(max_examples=8)
@given(
    spec=specs(),
    stem=st.sampled_from(["replicate", "share"]),
    form=st.sampled_from(FORMS),
    softmax=st.booleans(),
    in_graph=st.booleans(),
    opset=st.integers(18, 21),
)
def test_any_network_with_any_options(
    spec: ParNetSpec,
    stem: StemMode,
    form: DeployForm,
    softmax: bool,
    in_graph: bool,
    opset: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    options = ExportOptions(
        name="any",
        preprocessing=Preprocessing(size=spec.image_size, in_graph=in_graph),
        batch=BatchRange(min=1, opt=2, max=2),
        stem=stem if spec.members == 1 else "replicate",
        softmax=softmax,
        form=form,
        opset=opset,
    )
    model = initialise(spec, seed=0)
    folder = tmp_path_factory.mktemp("any")
    manifest = describe(spec, Source(kind="untrained", seed=0), options)
    write_graphs(folder, whole_graph(fuse(model, form), options), manifest)
    check_bundle(folder, manifest)


@pytest.mark.parametrize("name", SHAPES)
def test_every_variants_shape(name: str, tmp_path: Path) -> None:
    spec = SHAPES[name]
    options = ExportOptions(name=name, preprocessing=Preprocessing(size=spec.image_size))
    model = initialise(spec, seed=0)
    bundle = export_model(model, Source(kind="untrained", seed=0), tmp_path / name, options)
    check_bundle(bundle.path, bundle.manifest)
    images = trial(bundle.manifest, 1)
    actual = run(bundle.path / MODEL_GRAPH, {IMAGES: images})["logits"]
    with torch.inference_mode():
        expected = fuse(model)(torch.from_numpy(images))
    assert relative_error(torch.from_numpy(actual), expected) < 1e-5


def test_files_of_a_bundle(tiny_bundle: ModelBundle) -> None:
    stages = {f"stages/{name}.onnx" for name in ("stream1", "stream2", "stream3", "fusion")}
    assert tiny_bundle.manifest.files.keys() == {
        MODEL_GRAPH,
        CHECKPOINT,
        LABELS,
        WEIGHTS,
        *stages,
    }
    assert open_model(tiny_bundle.path).manifest == tiny_bundle.manifest, "every file is checked"
    assert tiny_bundle.labels == tuple(f"class {i}" for i in range(7))


def test_the_bundles_checkpoint_is_the_network(tiny_bundle: ModelBundle) -> None:
    read = load_checkpoint(tiny_bundle.file(CHECKPOINT))
    assert read.model.spec == tiny_bundle.manifest.spec
    assert read.facts.preprocessing == tiny_bundle.manifest.preprocessing
    images = torch.randn(1, 3, 64, 64)
    assert greatest_error(read.model, tiny_network(), images) == 0


def test_the_manifest_says_what_it_is(tiny_bundle: ModelBundle) -> None:
    manifest = json.loads((tiny_bundle.path / "manifest.json").read_bytes())
    assert manifest["format"] == "parnet-deploy/model"
    assert manifest["format_version"] == 1
    assert manifest["precision"] == "fp32"
    assert manifest["opset"] == 18
    assert manifest["source"] == {
        "kind": "untrained",
        "file": None,
        "sha256": None,
        "ema": None,
        "seed": 0,
    }
    assert manifest["warnings"] == [UNTRAINED]
    assert manifest["tools"].keys() >= {"parnet-deploy", "torch", "onnx", "onnx-graphsurgeon"}
    assert manifest["cuts"][0] == {
        "tensor": {"name": "stream2_block2", "shape": [1, 16, 8, 8], "dtype": "float32"},
        "bytes": 16 * 8 * 8 * 4,
        "source": "stream2",
        "target": "fusion",
    }


def test_a_trained_network_is_not_called_untrained(tmp_path: Path) -> None:
    source = Source(kind="parnet-deploy", file="net.safetensors", sha256="0" * 64)
    options = ExportOptions(name="net", preprocessing=Preprocessing(size=(64, 64)))
    labels = [f"digit {i}" for i in range(7)]
    bundle = export_model(tiny_network(), source, tmp_path / "net", options, labels)
    assert bundle.manifest.warnings == ()
    assert bundle.labels == tuple(labels)
    assert load_checkpoint(bundle.file(CHECKPOINT)).facts.labels == tuple(labels)


@pytest.mark.parametrize("labels", [[], ["one"], ["x"] * 8])
def test_a_label_for_every_class(tmp_path: Path, labels: list[str]) -> None:
    options = ExportOptions(name="net", preprocessing=Preprocessing(size=(64, 64)))
    with pytest.raises(UsageError, match=f"7 classes need as many labels, not {len(labels)}"):
        export_model(tiny_network(), Source(kind="untrained"), tmp_path / "net", options, labels)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("label", ["cat\ndog", "cat\u2028dog", "cat\r"])
def test_a_label_of_two_lines_is_refused(tmp_path: Path, label: str) -> None:
    """Read back, it would move all labels behind it to other classes."""
    options = ExportOptions(name="net", preprocessing=Preprocessing(size=(64, 64)))
    labels = [label, *"abcdef"]
    with pytest.raises(UsageError, match="a label has a line break in it"):
        export_model(tiny_network(), Source(kind="untrained"), tmp_path / "net", options, labels)
    assert not any(tmp_path.iterdir())


def test_what_stands_there_is_kept_unless_forced(tmp_path: Path) -> None:
    first = export_tiny(tmp_path / "net")
    model = tiny_network(seed=1)
    options = ExportOptions(name="net", preprocessing=Preprocessing(size=(64, 64)))

    def again(**force: bool) -> ModelBundle:
        return export_model(
            model, Source(kind="untrained", seed=1), tmp_path / "net", options, **force
        )

    with pytest.raises(OutputExistsError, match="--force"):
        again()
    assert open_model(tmp_path / "net").manifest == first.manifest
    assert again(force=True).manifest.source.seed == 1
    assert open_model(tmp_path / "net").manifest.source.seed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}


@pytest.mark.parametrize("stem", ["replicate", "share"])
def test_a_stage_carries_only_its_own_blocks(tmp_path: Path, stem: StemMode) -> None:
    bundle = export_tiny(tmp_path / "net", stem=stem, preprocess=True)
    readers = []
    for stage in bundle.manifest.stages:
        # The classifier's weights are named after its output.
        names = [name.split(".")[0] for name in initializers(bundle.path / stage.file)]
        blocks = {"head" if name == "logits" else name for name in names}
        reads_images = any(spec.name == IMAGES for spec in stage.inputs)
        readers.append(reads_images)
        assert blocks == {*stage.blocks, *(["preprocess"] if reads_images else [])}
    assert sum(readers) == (3 if stem == "replicate" else 1)


def test_weights_stand_once_and_every_graph_points_at_them(tiny_bundle: ModelBundle) -> None:
    paths = [tiny_bundle.path / MODEL_GRAPH, *tiny_bundle.path.glob("stages/*.onnx")]
    places: dict[str, set[tuple[str, str]]] = {}
    for path in paths:
        for name, tensor in initializers(path).items():
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert len(tensor.raw_data) < 1024, (path, name)
                continue
            entry = {item.key: item.value for item in tensor.external_data}
            assert (path.parent / entry["location"]).samefile(tiny_bundle.path / WEIGHTS)
            places.setdefault(name, set()).add((entry["offset"], entry["length"]))
    assert len(places) > 20
    assert all(len(found) == 1 for found in places.values()), "the same bytes in every graph"
    total = sum(int(length) for found in places.values() for _, length in found)
    header = int.from_bytes((tiny_bundle.path / WEIGHTS).read_bytes()[:8], "little")
    assert (tiny_bundle.path / WEIGHTS).stat().st_size == 8 + header + total


def test_the_same_weights_give_the_same_bytes(tmp_path: Path, tiny_bundle: ModelBundle) -> None:
    again = export_tiny(tmp_path / "tiny")
    for name in tiny_bundle.manifest.files:
        assert (again.path / name).read_bytes() == (tiny_bundle.path / name).read_bytes(), name


def test_exporting_leaves_the_network_alone(tmp_path: Path) -> None:
    model = tiny_network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = ExportOptions(name="net", preprocessing=Preprocessing(size=(64, 64)))
    export_model(model, Source(kind="untrained"), tmp_path / "net", options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_parnet_l_in_seconds_and_stored_once(tmp_path: Path) -> None:
    spec = variant("l").spec
    torch.manual_seed(0)
    model = ParNet(spec).eval()
    options = ExportOptions(name="l", preprocessing=Preprocessing(size=spec.image_size))
    start = time.process_time()
    bundle = export_model(model, Source(kind="untrained"), tmp_path / "l", options)
    assert time.process_time() - start < 60
    sizes: Any = {name: record.bytes for name, record in bundle.manifest.files.items()}
    del sizes[CHECKPOINT]
    weights = 4 * 54.915e6
    assert weights < sum(sizes.values()) < 1.05 * weights
    assert {c.source: c.bytes for c in bundle.manifest.cuts} == {
        "stream1": 320 * 28 * 28 * 4,
        "stream2": 320 * 28 * 28 * 4,
        "stream3": 640 * 14 * 14 * 4,
    }
