"""Quantised bundles for `verify`, and what can be wrong with them; each is sealed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from conftest import tiny_spec
from onnx import TensorProto, numpy_helper
from verify_faults import _unseal

from parnet_deploy.bundle import (
    CHECKPOINT,
    MODEL_GRAPH,
    ModelBundle,
    ModelManifest,
    Source,
    open_model,
    seal,
)
from parnet_deploy.export import ExportOptions, export_model
from parnet_deploy.export.quantising import QuantiseOptions
from parnet_deploy.net import ParNet, initialise, load_checkpoint
from parnet_deploy.quantise.images import open_images
from parnet_deploy.spec import Array, Backend, DeployForm, Preprocessing
from parnet_deploy.spec.form import default_form
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Quantisation, scheme_of
from parnet_deploy.verify.written import load_graph

Change = Callable[[onnx.ModelProto], None]
Values = Callable[[Array], Array]

BACKENDS: dict[str, Backend] = {"int8": "onnxruntime", "fp8": "tensorrt-rtx", "bf16": "openvino"}


def write_pixels(path: Path, count: int = 32, seed: int = 0) -> Path:
    """An .npz of pictures: blurred noise from black to white, (N, 3, 64, 64) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1, (count, 3, 8, 8)).repeat(8, 2).repeat(8, 3)
    fine = rng.uniform(0, 1, (count, 3, 64, 64))
    mixed = 0.7 * coarse + 0.3 * fine
    low, high = mixed.min((1, 2, 3), keepdims=True), mixed.max((1, 2, 3), keepdims=True)
    np.savez(path, images=np.rint(255 * (mixed - low) / (high - low)).astype(np.uint8))
    return path


def export_precision(
    final: Path,
    pixels: Path,
    precision: Precision = "int8",
    backend: Backend = "onnxruntime",
    kept: tuple[str, ...] = (),
    preprocessing: Preprocessing | None = None,
    *,
    form: DeployForm | None = None,
    in_graph: bool = False,
    changes: dict[str, object] | None = None,
    equalise: bool = False,
    correct_bias: bool = False,
    per_channel: bool = True,
    change: Callable[[ParNet], None] = lambda network: None,
) -> ModelBundle:
    """A tiny network with sane activations in a precision, calibrated by greatest values."""
    spec = tiny_spec(**(changes or {}))
    right = Preprocessing(size=spec.image_size, in_graph=in_graph)
    options = ExportOptions(
        name=final.name,
        preprocessing=right,
        form=form or default_form(backend),
        precision=precision,
    )
    scheme = scheme_of(precision, backend)
    quantise = None
    if scheme is not None:
        images = open_images(str(pixels), preprocessing or right, limit=None)
        quantise = QuantiseOptions(
            name="tiny",
            precision=precision,
            scheme=scheme,
            images=images,
            method="minmax",
            kept=kept,
            equalise=equalise,
            correct_bias=correct_bias,
            per_channel=per_channel,
            doubtful=preprocessing is not None,  # a seeded fault, which export would refuse
        )
    network = initialise(spec, seed=0).eval()
    change(network)
    source = Source(kind="untrained", seed=0)
    return export_model(network, source, final, options, quantise=quantise)


def copy_of(model: ModelBundle, final: Path) -> Path:
    shutil.copytree(model.path, final)
    return final


def change_graphs(path: Path, change: Change, *files: str) -> None:
    """Change some of a bundle's graphs, their weights in them; all of them where none is named."""
    change_files(path, open_model(path, check=False).manifest, change, *files)


def change_files(path: Path, manifest: ModelManifest, change: Change, *files: str) -> None:
    """The same in a folder that is no bundle yet."""
    every = (MODEL_GRAPH, *(stage.file for stage in manifest.stages))
    for file in files or every:
        model = load_graph(path / file)
        change(model)
        onnx.save(model, path / file)


def mean_answer(model: ModelBundle, pixels: Path) -> Array:
    """Of the network in torch: its mean logits, (classes,), on the pictures."""
    images = open_images(str(pixels), model.manifest.preprocessing, limit=None).array()
    network = load_checkpoint(model.file(CHECKPOINT)).model
    with torch.inference_mode():
        answers: Array = network(torch.from_numpy(images)).numpy()
    return answers.mean(axis=0)


def change_manifest(path: Path, change: Callable[[ModelManifest], ModelManifest]) -> None:
    """Change a manifest, and seal the bundle again."""
    manifest = change(open_model(path, check=False).manifest)
    _unseal(path)
    seal(path, manifest)


def change_quantisation(path: Path, change: Callable[[Quantisation], Quantisation]) -> None:
    def changed(manifest: ModelManifest) -> ModelManifest:
        assert manifest.quantisation is not None
        return replace(manifest, quantisation=change(manifest.quantisation))

    change_manifest(path, changed)


def times_scale(tensor: str, factor: float) -> Change:
    """One activation's scale is off by a factor."""

    def change(model: onnx.ModelProto) -> None:
        for constant in model.graph.initializer:
            if constant.name == f"{tensor}.quantise.scale":
                values = numpy_helper.to_array(constant)
                wrong = (values * factor).astype(values.dtype)
                constant.CopyFrom(numpy_helper.from_array(wrong, constant.name))

    return change


def times_scale_said(tensor: str, factor: float) -> Callable[[Quantisation], Quantisation]:
    """The same in the manifest."""

    def change(found: Quantisation) -> Quantisation:
        one = found.tensors[tensor]
        wrong = replace(one, scale=one.scale * factor)
        return replace(found, tensors={**found.tensors, tensor: wrong})

    return change


def zero_point(tensor: str, value: int) -> Change:
    """One activation's zero point, or a kernel's, is another."""

    def change(model: onnx.ModelProto) -> None:
        for constant in model.graph.initializer:
            if constant.name in (f"{tensor}.quantise.zero_point", f"{tensor}.zero_point"):
                values = numpy_helper.to_array(constant)
                wrong = np.full(values.shape, value, values.dtype)
                constant.CopyFrom(numpy_helper.from_array(wrong, constant.name))

    return change


def kernel_scale(block: str, factor: float) -> Change:
    """A kernel's scales are off by a factor."""

    def change(model: onnx.ModelProto) -> None:
        for constant in model.graph.initializer:
            if constant.name == f"{block}.conv.weight.scale":
                values = numpy_helper.to_array(constant)
                wrong = (values * factor).astype(values.dtype)
                constant.CopyFrom(numpy_helper.from_array(wrong, constant.name))

    return change


def constant(name: str, change: Callable[[Array], Array]) -> Change:
    """One constant is another; a graph that has none of the name is left as it is."""

    def changed(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                values = numpy_helper.to_array(tensor)
                wrong = np.asarray(change(values.astype(np.float64))).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(wrong, name))

    return changed


def float_kernel(block: str) -> Change:
    """A layer computes in float: its kernel is the dequantised one."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        known = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Conv" and node.name == f"{block}.conv":
                name = f"{block}.conv.weight"
                values = numpy_helper.to_array(known[name]).astype(np.float32)
                scale = numpy_helper.to_array(known[f"{name}.scale"]).reshape(-1, 1, 1, 1)
                made = numpy_helper.from_array((values * scale).astype(np.float32), f"{name}.wide")
                graph.initializer.append(made)
                node.input[1] = made.name

    return change


def without_pair(tensor: str) -> Change:
    """An activation is not quantised: all that read it read what its maker gives."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        pair = [n for n in graph.node if n.name in (f"{tensor}.quantise", f"{tensor}.dequantise")]
        gone = {f"{tensor}.float", *(name for node in pair for name in node.output)}
        for node in pair:
            graph.node.remove(node)
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name in gone:
                        names[index] = tensor
        for value in (*graph.input, *graph.output):
            if value.name == tensor:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        del graph.value_info[:]

    return change


def without_quantiser(tensor: str) -> Callable[[Quantisation], Quantisation]:
    """A manifest that does not know of it either."""

    def change(found: Quantisation) -> Quantisation:
        left = {name: how for name, how in found.tensors.items() if name != tensor}
        return replace(found, tensors=left)

    return change


def blind(answer: Array) -> Change:
    """The head looks at nothing: it gives one answer, (classes,), to every image."""

    def change(model: onnx.ModelProto) -> None:
        for constant in model.graph.initializer:
            if constant.name in ("logits.weight", "logits.bias"):
                values = numpy_helper.to_array(constant)
                wrong = answer if constant.name == "logits.bias" else np.zeros(values.shape)
                constant.CopyFrom(
                    numpy_helper.from_array(wrong.astype(values.dtype), constant.name)
                )

    return change


def float32_everywhere(model: onnx.ModelProto) -> None:
    """A float16 graph in float32, which still bears the name of the other."""
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.FLOAT16:
            kind.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
