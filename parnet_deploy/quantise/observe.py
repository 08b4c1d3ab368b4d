"""Running a float32 graph on images, and seeing which values its tensors take.

It runs in ONNX Runtime on the CPU with the wanted tensors as further outputs, from memory: nothing
is written. One image's values are held at a time (those of a whole batch, where the graph's is
fixed), and of each tensor a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.external_data_helper import uses_external_data

from parnet_deploy.errors import ExportError, RunnerError
from parnet_deploy.quantise.histogram import Histogram
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.runtime.onnxruntime import load_onnxruntime, run_error, session_options
from parnet_deploy.spec import IMAGES, Array

IR_VERSION = 10
"""Of graphs in memory: onnx writes its own newest one, which ONNX Runtime may not know yet."""

Model: TypeAlias = onnx.ModelProto | gs.Graph | Path
"""A float32 graph: with its weights inside, or a file whose weights lie beside it."""

Progress = Callable[[int, int], None]
"""Told how many images are done, and how many there are."""


def observe(
    model: Model,
    names: Sequence[str],
    images: CalibrationImages,
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Count the values of tensors on all images.

    Args:
        model: the graph; it is left as it is.
        names: its tensors that are wanted; its input ``images`` may be one.
        images: what to run.
        threads: of ONNX Runtime; 0 takes one a core.
        progress: called after every image.

    Returns:
        A histogram for each name, in their order.

    Raises:
        ExportError: there is no such tensor; or one is not finite, or has one value everywhere, so
            that there is nothing to quantise.
        RunnerError: the graph does not load or run.
    """
    found: dict[str, Histogram] = {}
    done = 0
    for arrays in run_tensors(model, names, images, threads=threads):
        count = len(next(iter(arrays.values()))) if arrays else 0
        for name, array in arrays.items():
            try:
                seen = Histogram.of(array)
            except ValueError as exc:
                raise _not_finite(name, array, done) from exc
            found[name] = found[name] + seen if name in found else seen
        done += count
        if progress:
            progress(done, images.count)
    for name, histogram in found.items():
        if histogram.low == histogram.high:
            raise ExportError(
                f"the layer '{name}' gives {histogram.low:.6g} everywhere on all {done} "
                "calibration images, so that there is no range to quantise: is the network "
                "trained? --precision fp16 needs no ranges"
            )
    return {name: found[name] for name in names}


def run_tensors(
    model: Model,
    names: Sequence[str],
    images: CalibrationImages,
    *,
    threads: int = 0,
    batch: int = 1,
) -> Iterator[Mapping[str, Array]]:
    """Values of tensors, one image (or batch of a graph whose batch is fixed) after the other.

    Args:
        model: the graph; it is left as it is.
        names: its tensors that are wanted.
        images: what to run.
        threads: of ONNX Runtime; 0 takes one a core.
        batch: images per run, where the graph leaves it open.

    Yields:
        Each tensor's values, with a row for each of the next images.

    Raises:
        ExportError: there is no such tensor.
        RunnerError: the graph does not load or run.
    """
    made = [name for name in names if name != IMAGES]
    data, fixed = _with_outputs(model, made)
    session = _session(data, threads)
    del data  # its weights are the session's now
    for feed in images.batches(fixed or batch):
        count = len(feed[IMAGES])
        filled = {IMAGES: _filled(feed[IMAGES], fixed or count)}
        try:
            results = session.run(made, filled) if made else []
        except Exception as exc:  # its exceptions share no base class
            raise run_error(exc) from exc
        values = dict(zip(made, results, strict=True)) | filled
        yield {name: values[name][:count] for name in names}


def _with_outputs(model: Model, names: Sequence[str]) -> tuple[bytes, int]:
    """A graph that gives these tensors, and its batch; 0 where the graph leaves that open."""
    proto = _proto(model)
    batch = _fixed_batch(proto)
    _want(proto, names)
    return proto.SerializeToString(), batch


def _proto(model: Model) -> onnx.ModelProto:
    """A copy with its weights inside."""
    if isinstance(model, Path):
        copied = onnx.load(model)
    elif isinstance(model, gs.Graph):
        copied = gs.export_onnx(model, do_type_check=False)
    else:
        if any(map(uses_external_data, model.graph.initializer)):
            raise RunnerError("the graph's weights lie outside of it: give its file, or load them")
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
    copied.ir_version = min(copied.ir_version, IR_VERSION)
    return copied


def _fixed_batch(proto: onnx.ModelProto) -> int:
    """Images per run; 0 where the graph leaves it open."""
    known = {value.name: value for value in proto.graph.input}
    if IMAGES not in known:
        raise RunnerError(f"the graph reads {', '.join(known)}, and '{IMAGES}' is needed")
    return int(known[IMAGES].type.tensor_type.shape.dim[0].dim_value)


def _want(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Let these tensors be the graph's outputs."""
    there = {name for node in proto.graph.node for name in node.output}
    if missing := [name for name in names if name not in there]:
        raise ExportError(f"the graph has no tensor '{missing[0]}' whose values could be seen")
    if names:
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)


RELU_FUSION = "ReluQuantRewrite"
"""It leaves a ReLU out in front of a QuantizeLinear, which cuts off what is below 0 where its zero
point is its type's least number; ONNX Runtime (1.31) takes every float8 for such a type."""


def _session(data: bytes, threads: int) -> Any:
    options = session_options(threads=threads, optimise=True)
    # Where something is quantised, it is computed as it is written: no integer kernels.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return load_onnxruntime().InferenceSession(
            data,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[RELU_FUSION],
        )
    except Exception as exc:  # its exceptions share no base class
        raise run_error(exc) from exc


def _filled(images: Array, batch: int) -> Array:
    """A batch of fixed size, filled up with its own last image."""
    if len(images) == batch:
        return images
    return np.concatenate([images, *[images[-1:]] * (batch - len(images))])


def _not_finite(name: str, array: Array, done: int) -> ExportError:
    rows = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    return ExportError(
        f"the layer '{name}' gives values that are not finite for calibration image "
        f"{done + int(np.argmin(rows))} (counted from 0): the network itself is broken there, in "
        "float32; nothing was written"
    )
