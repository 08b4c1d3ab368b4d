"""A network in torch as a runner: what engines are, before they are engines."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from parnet_deploy.errors import RunnerError, TargetError
from parnet_deploy.net.parnet import BlockGraph
from parnet_deploy.spec import IMAGES, LOGITS, Array, TensorSpec, check_feeds


class TorchRunner:
    """A network in torch that reads and gives numpy arrays, in float32 throughout.

    It has what `parnet_deploy.runtime.Runner` asks for, and takes any batch. TF32 is off on a GPU:
    the answers are float32's.
    """

    def __init__(
        self, model: BlockGraph, *, device: str = "cpu", channels_last: bool = False
    ) -> None:
        """Take a copy of a network; the one that is given stays as it is and where it is.

        Args:
            model: in training or deploy form.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            channels_last: lay its arrays out as NHWC, which some devices compute faster.

        Raises:
            TargetError: there is no such device here.
        """
        size = model.spec.image_size
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec(name=IMAGES, shape=("N", 3, *size), dtype="float32"),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec(name=LOGITS, shape=("N", model.spec.classes), dtype="float32"),
        )
        self._device = _find_device(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        own = copy.deepcopy(model).eval().to(self._device, torch.float32)
        self._model: BlockGraph | None = own.to(memory_format=self._format)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the array given back is new.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the run failed, or the runner is closed.
        """
        check_feeds(self.inputs, feeds)
        model = self._model  # it stays for this run when another thread closes the runner
        if model is None:
            raise RunnerError("this runner is closed; make it again")
        try:
            logits = self._run(model, torch.from_numpy(feeds[IMAGES]))
        except torch.OutOfMemoryError as exc:
            raise RunnerError(
                f"{self._device} has not enough memory for {len(feeds[IMAGES])} images at once; "
                "run fewer"
            ) from exc
        except RuntimeError as exc:
            raise RunnerError(f"torch failed: {str(exc).splitlines()[0]}") from exc
        return {LOGITS: logits.cpu().numpy()}

    def close(self) -> None:
        """Let go of the network; a second call does nothing."""
        self._model = None

    def _run(self, model: BlockGraph, images: Tensor) -> Tensor:
        moved = images.to(self._device, memory_format=self._format)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            logits: Tensor = model(moved)
        return logits


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise TargetError(f"a device is cpu, cuda or cuda:N; not '{name}'") from exc
    if device.type not in ("cpu", "cuda"):
        raise TargetError(f"a device is cpu, cuda or cuda:N; not '{name}'")
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if (device.index or 0) >= there:
            found = f"{there or 'no'} CUDA device{'s' * (there > 1)}"
            raise TargetError(
                f"torch finds {found} here, not {name}; 'parnet-deploy doctor' says what to install"
            )
    return device
