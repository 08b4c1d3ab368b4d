"""The network as a plain ONNX graph, as it was trained: what ONNX's other users would feed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parnet_deploy.bench.peers.base import Preparation
from parnet_deploy.bundle import CHECKPOINT, BatchRange, open_model
from parnet_deploy.errors import BundleError, ExportError, os_reason
from parnet_deploy.spec import IMAGES, LOGITS, Preprocessing

if TYPE_CHECKING:
    from parnet_deploy.net import ParNet

GRAPH = "model.onnx"


def unfused_graph(asked: Preparation) -> Path:
    """This project's export without its folds: float32 images in, logits out, a fixed batch.

    Returns:
        The ONNX file, which peers of one network share; it is written by the first that asks.

    Raises:
        BundleError: the model bundle cannot be read, or the workspace not written.
        CheckpointError: its weights cannot be read.
    """

    def write(folder: Path) -> None:
        from parnet_deploy.export import ExportOptions, save_with_weights, whole_graph

        size = open_model(Path(asked.model), check=False).manifest.preprocessing.size
        options = ExportOptions(
            name="unfused",
            preprocessing=Preprocessing(size=size),
            batch=BatchRange(min=asked.batch, opt=asked.batch, max=asked.batch),
        )
        save_with_weights(whole_graph(load_trained(asked), options), folder / GRAPH)

    return kept(asked.folder, f"unfused-b{asked.batch}", write) / GRAPH


def torch_graph(asked: Preparation) -> Path:
    """What ``torch.onnx.export`` makes of the training form.

    Returns:
        The ONNX file; it is written by the first that asks.

    Raises:
        BundleError: the model bundle cannot be read, or the workspace not written.
        CheckpointError: its weights cannot be read.
        ExportError: torch could not export it.
    """

    def write(folder: Path) -> None:
        model = load_trained(asked)
        export_with_torch(model, (3, *model.spec.image_size), asked.batch, folder / GRAPH)

    return kept(asked.folder, f"torch-onnx-b{asked.batch}", write) / GRAPH


def load_trained(asked: Preparation) -> ParNet:
    """The network in training form, float32, in inference mode."""
    from parnet_deploy.net import load_checkpoint

    return load_checkpoint(Path(asked.model) / CHECKPOINT).model


def torch_exporter() -> str:
    """Which of torch's two exporters is at hand: its default one needs onnxscript."""
    with contextlib.suppress(ImportError):
        import onnxscript  # noqa: F401

        return "dynamo"
    return "TorchScript"


def export_with_torch(model: Any, shape: tuple[int, int, int], batch: int, path: Path) -> None:
    """``torch.onnx.export`` of any network of one input and one output.

    Args:
        model: a ``torch.nn.Module`` in inference mode, float32.
        shape: of an image: channels, height, width.
        batch: images per run.
        path: the ONNX file.

    Raises:
        ExportError: torch could not export it.
    """
    import torch

    try:
        with warnings.catch_warnings():  # that one of the two exporters is the older one
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.zeros(batch, *shape),),
                path,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamo=torch_exporter() == "dynamo",
            )
    except Exception as exc:  # its exceptions share no base class
        raise ExportError(f"torch.onnx.export failed: {' '.join(str(exc).split())}") from exc


def one_file(graph: Path, path: Path) -> None:
    """The same graph with its weights in it: not every converter reads them from another file."""
    import onnx

    onnx.save(onnx.load(graph), path)


def kept(workspace: Path, name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the workspace that is written whole, or not at all, and then kept.

    Args:
        workspace: the folder that it is in.
        name: the folder's.
        write: writes into the folder that it is given.

    Raises:
        BundleError: it cannot be written.
    """
    final = workspace / name
    if final.is_dir():
        return final
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=workspace))
        try:
            write(work)
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as exc:
        raise BundleError(f"cannot write {final}: {os_reason(exc)}") from exc
    return final
