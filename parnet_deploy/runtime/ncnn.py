"""ncnn as a runner. Reference: https://github.com/Tencent/ncnn/wiki."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parnet_deploy.errors import (
    EngineError,
    MissingDependencyError,
    RunnerError,
    TargetError,
    os_reason,
)
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.runtime.ncnn_param import MAGIC, NcnnLayer, Param, read_param
from parnet_deploy.spec import Array, TensorSpec, check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator

NET_OPTIONS: Mapping[str, bool] = {
    "lightmode": True,
    "use_vulkan_compute": False,
    "use_fp16_packed": False,
    "use_fp16_storage": False,
    "use_fp16_arithmetic": False,
    "use_bf16_storage": False,
    "use_packing_layout": True,
    "use_winograd_convolution": True,
    "use_sgemm_convolution": True,
}
"""Attributes of ``ncnn.Option``: every number is a float32, and memory is freed as it goes."""


SPIN_COUNT, SPINS = "GOMP_SPINCOUNT", 2000
"""How often OpenMP's threads look for work before they sleep: some microseconds' worth."""


class NcnnRunner(ClosingRunner):
    """A network of ncnn layers on the CPU. Safe to run from several threads.

    ncnn reckons one image at a time: a batch is a loop over its images.
    """

    def __init__(
        self,
        path: Path,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        threads: int = 0,
    ) -> None:
        """Load a network; its weights are laid out for this CPU now, not when it was built.

        Args:
            path: ``.param`` file; the ``.bin`` of the same name lies beside it.
            inputs: its inputs, batch first.
            outputs: those of its blobs that are wanted, batch first.
            threads: threads of one layer; 0 means one a core that may be used.

        Raises:
            MissingDependencyError: ncnn is not installed.
            EngineError: a file is missing or damaged, or a blob is not there.
        """
        self.inputs = inputs
        self.outputs = outputs
        layers = _read_layers(path)
        _check_blobs(layers, inputs, outputs)
        _check_size(layers, path.with_suffix(".bin"))
        self._ncnn = load_ncnn()
        self._net: Any = _open_net(self._ncnn, path, threads or usable_cores())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the arrays given back are new.

        Raises:
            RunnerError: the arrays do not fit `inputs`, the run failed, or the runner is closed.
        """
        return self._run(feeds)[0]

    def time_compute(self, feeds: Mapping[str, Array]) -> float:
        """Run once. Seconds that ncnn's own work took, without the copies in and out.

        Raises:
            RunnerError: as `run`.
        """
        return self._run(feeds)[1]

    def close(self) -> None:
        """Free the network; a second call does nothing."""
        self._net = None

    def _run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        check_feeds(self.inputs, feeds)
        net = self._net  # it stays open for this run when another thread closes the runner
        if net is None:
            raise RunnerError("this runner is closed; open it again")
        batch = _batch(feeds)
        results = {spec.name: np.empty(spec.concrete(batch), np.float32) for spec in self.outputs}
        seconds = 0.0
        for index in range(batch):
            images = {name: feed[index] for name, feed in feeds.items()}
            rows = {name: result[index] for name, result in results.items()}
            seconds += _run_image(self._ncnn, net, images, rows)
        return results, seconds


def load_ncnn() -> Any:
    """The module, imported when it is first needed: what serves other engines lacks it.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        with _bounded_spin():
            import ncnn
    except ImportError as exc:
        raise MissingDependencyError(
            f"ncnn cannot be imported ({exc}): pip install 'parnet-deploy[ncnn]'"
        ) from exc
    return ncnn


def ncnn_target() -> dict[str, str]:
    """What an engine depends on: the format of its layers. CPUs and versions are not in it."""
    return {"param": MAGIC}


def check_ncnn_target(recorded: Mapping[str, object]) -> None:
    """Compare an engine's target with what this version reads.

    Raises:
        TargetError: it is of another format.
    """
    if recorded.get("param") != MAGIC:
        raise TargetError(
            f"its layers are in format {recorded.get('param', 'unknown')} of ncnn's .param "
            f"(here: {MAGIC})"
        )


@contextmanager
def _bounded_spin() -> Iterator[None]:
    """Let the OpenMP that is loaded meanwhile spin for a moment before its threads sleep.

    ncnn brings GNU's, which reads the environment once, when it is loaded. Threads that slept at
    once between two layers had to be woken some 300 times in a run; threads that spin without end
    take cores from others. ``GOMP_SPINCOUNT`` counts before ``OMP_WAIT_POLICY``, which the command
    line sets for torch. What the user has set of the former counts.
    Reference: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html
    """
    if SPIN_COUNT in os.environ:
        yield
        return
    os.environ[SPIN_COUNT] = str(SPINS)
    try:
        yield
    finally:
        os.environ.pop(SPIN_COUNT, None)


def _read_layers(path: Path) -> tuple[NcnnLayer, ...]:
    try:
        return read_param(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise EngineError(f"{path} cannot be read: {os_reason(exc)}") from exc
    except UnicodeDecodeError as exc:
        raise EngineError(f"{path} is no text, and so not ncnn's .param") from exc
    except EngineError as exc:
        raise EngineError(f"{path} cannot be used: {exc}") from exc


def _check_blobs(
    layers: tuple[NcnnLayer, ...], inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Its inputs and outputs are those it is said to have: ncnn itself does not look."""
    read = {layer.tops[0]: _input_shape(layer) for layer in layers if layer.kind == "Input"}
    wanted = {spec.name: spec.shape[1:] for spec in inputs}
    if read != wanted:
        raise EngineError(f"it reads {read} for each image, and {wanted} is expected")
    made = {blob for layer in layers for blob in layer.tops}
    if missing := [spec.name for spec in outputs if spec.name not in made]:
        raise EngineError(f"it does not give {missing}")


def _input_shape(layer: NcnnLayer) -> tuple[Param, ...]:
    """Channels, height and width; or channels alone."""
    return tuple(value for _, value in sorted(layer.params.items(), reverse=True))


def _check_size(layers: tuple[NcnnLayer, ...], weights: Path) -> None:
    """A file of weights that is too short would be reported on standard error, or not at all."""
    expected = sum(layer.weight_bytes for layer in layers)
    try:
        found = weights.stat().st_size
    except OSError as exc:
        raise EngineError(f"{weights} cannot be read: {os_reason(exc)}") from exc
    if found != expected:
        raise EngineError(f"{weights} has {found} bytes, and its layers need {expected}")


def _open_net(ncnn: Any, path: Path, threads: int) -> Any:
    net = ncnn.Net()
    for name, value in NET_OPTIONS.items():
        setattr(net.opt, name, value)
    net.opt.num_threads = threads
    for load, file in (
        (net.load_param, path),
        (net.load_model, path.with_suffix(".bin")),
    ):
        try:
            status = load(os.fspath(file))
        except Exception as exc:  # a path that is no text, memory
            raise EngineError(f"ncnn cannot load {file}: {exc}") from exc
        if status != 0:
            raise EngineError(f"ncnn cannot load {file} (it answers {status})")
    return net


def _batch(feeds: Mapping[str, Array]) -> int:
    sizes = {len(feed) for feed in feeds.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise RunnerError(f"every input holds the same images, at least one; not {sorted(sizes)}")
    return sizes.pop()


def _run_image(
    ncnn: Any, net: Any, image: Mapping[str, Array], results: Mapping[str, Array]
) -> float:
    """Run one image, and write what comes out into `results`. Seconds without the copies.

    The extractor and the arrays it gave are gone at the end; they must not outlive the network.
    """
    extractor = net.create_extractor()
    for name, array in image.items():
        if extractor.input(name, _mat(ncnn, array)) != 0:
            raise RunnerError(f"ncnn does not take '{name}'")
    start = time.perf_counter()
    answers = [(name, *extractor.extract(name)) for name in results]
    seconds = time.perf_counter() - start
    for name, status, mat in answers:
        if status != 0:
            raise RunnerError(f"ncnn failed to give '{name}' (it answers {status})")
        found = np.asarray(mat)
        if found.shape != results[name].shape or found.dtype != np.float32:
            raise RunnerError(
                f"ncnn gave '{name}' as {found.dtype.name}{list(found.shape)} for one image, not "
                f"float32{list(results[name].shape)}"
            )
        results[name][...] = found
    return seconds


def _mat(ncnn: Any, array: Array) -> Any:
    """A copy in memory of ncnn's own, as float32.

    Layers that work in place ask how many share their input, which memory of numpy's cannot tell;
    and the copy is where whole numbers become floats.
    """
    mat = ncnn.Mat(array.shape[::-1])  # width first
    np.asarray(mat)[...] = array
    return mat
