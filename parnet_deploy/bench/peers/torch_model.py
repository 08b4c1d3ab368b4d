"""A network in torch as its users run it: loaded, moved, called on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.peers.base import Precision, contracts
from parnet_deploy.bench.peers.runner import CallRunner, TimedCallRunner
from parnet_deploy.bundle import CHECKPOINT
from parnet_deploy.errors import TargetError
from parnet_deploy.spec import Array, decode
from parnet_deploy.spec.codec import encode

if TYPE_CHECKING:
    import torch

    from parnet_deploy.net import BlockGraph

    Model = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchSettings:
    """How torch runs a network.

    Attributes:
        batch: images per run.
        precision: dtype of weights and images.
        fused: in deploy form, folded when it is opened; otherwise as it was trained.
        channels_last: arrays laid out as NHWC.
        tuned: on a GPU cuDNN measures its algorithms for each convolution and takes the fastest
            (``cudnn.benchmark``), which torch by itself does not.
        mode: of ``torch.compile``; not used by eager torch.
        cache: folder for what ``torch.compile`` made; None for eager torch.
    """

    batch: int = 1
    precision: Precision = "fp32"
    fused: bool = False
    channels_last: bool = False
    tuned: bool = False
    mode: str | None = None
    cache: str | None = None


TUNED = ", cudnn.benchmark"
"""What is said in the name of a peer whose cuDNN measures its algorithms."""


def settings_of(contestant: Contestant) -> TorchSettings:
    """A contestant's settings with every type checked.

    Raises:
        SpecError: one is of the wrong type.
    """
    return decode(encode(contestant.settings), TorchSettings)


def load_network(contestant: Contestant, settings: TorchSettings) -> BlockGraph:
    """The network of a model bundle on its device, in inference mode.

    Raises:
        CheckpointError: its weights cannot be read.
        TargetError: torch does not find the device.
    """
    import torch

    from parnet_deploy.net import fuse, load_checkpoint

    device = torch.device(contestant.devices[0])
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TargetError(f"torch finds no {device} here; 'parnet-deploy doctor' says why")
    trained = load_checkpoint(Path(contestant.path) / CHECKPOINT).model
    model: BlockGraph = fuse(trained) if settings.fused else trained
    dtype = torch.float16 if settings.precision == "fp16" else torch.float32
    model = model.eval().to(device, dtype)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return model.to(memory_format=layout)


def as_runner(
    network: BlockGraph, model: Model, contestant: Contestant, settings: TorchSettings, title: str
) -> CallRunner:
    """A callable on tensors as a runner of arrays: upload, call, download.

    TF32 is off, which is not torch's default for convolutions on a GPU: precisions are compared
    with their equals.

    Args:
        network: the network, which tells its images' size.
        model: what is called, on the device; the network itself or what became of it.
        contestant: whom it runs for.
        settings: its own.
        title: how errors name it.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = settings.tuned
    device = torch.device(contestant.devices[0])
    dtype = next(network.parameters()).dtype
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format

    def upload(images: Array) -> torch.Tensor:
        return torch.from_numpy(images).to(device, dtype, memory_format=layout)

    def call(images: Array) -> Array:
        with torch.inference_mode():
            answer: Array = model(upload(images)).float().cpu().numpy()
        return answer

    def timed(images: Array) -> float:
        """One run that is queued behind another: the GPU does not wait for the host's launches."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.inference_mode(), torch.cuda.device(device):
            moved = upload(images)
            model(moved)
            start.record()
            model(moved)
            end.record()
            end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1000

    inputs, outputs = contracts(settings.batch, network.spec.image_size, network.spec.classes)
    if device.type == "cuda":
        return TimedCallRunner(call, timed, title=title, inputs=inputs, outputs=outputs)
    return CallRunner(call, title=title, inputs=inputs, outputs=outputs)
