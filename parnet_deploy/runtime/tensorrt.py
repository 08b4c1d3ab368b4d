"""TensorRT and TensorRT RTX plans as runners.

References: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
and https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.base import ClosingRunner
from parnet_deploy.runtime.cuda import CudaDevice, Device, Graph, find_gpu
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend, load_api
from parnet_deploy.runtime.tensorrt_plan import Plan, load_plan
from parnet_deploy.runtime.tensorrt_target import PlanTarget
from parnet_deploy.spec import Array, TensorSpec, check_feeds


class TensorRTRunner(ClosingRunner):
    """A plan on one GPU. Safe to run from several threads: they take turns.

    Memory is allocated once, for the largest batch. The second run of a batch size records copies
    and kernels as one CUDA graph, if the plan allows it, and later ones replay it.
    """

    def __init__(
        self,
        path: Path,
        *,
        backend: TensorRTBackend,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: int = 0,
        target: Mapping[str, Any] | None = None,
        weights: Path | None = None,
        api: Any = None,
        find: Callable[[int], Gpu] = find_gpu,
        open_device: Callable[[int], Device] = CudaDevice,
    ) -> None:
        """Load a plan. Nothing of it is read before GPU and version are known to fit.

        Args:
            path: the plan.
            backend: which flavour of TensorRT built it.
            inputs: its inputs.
            outputs: its outputs.
            device: number of the GPU.
            target: what it needs, as its manifest says; not checked where None.
            weights: the ONNX file it was built from, for a weight-stripped plan.
            api: TensorRT's module; loaded where None.
            find: gives the GPU of a number.
            open_device: takes that GPU.

        Raises:
            TargetError: there is no such GPU, or it or the installed version is not what the plan
                was built for.
            EngineError: the plan is damaged, or not that of these inputs and outputs.
            MissingDependencyError: TensorRT or cuda-core is not installed.
        """
        self.inputs = inputs
        self.outputs = outputs
        needs = None if target is None else PlanTarget.from_json(target)
        gpu = find(device)
        if needs is not None:
            needs.check_gpu(gpu)
        api = api or load_api(backend)
        if needs is not None:
            needs.check_version(str(api.__version__))
        self._lock = threading.Lock()
        self._usable = "it is closed"
        self._device = open_device(device)
        try:
            self._device.make_current()
            self._plan: Plan | None = load_plan(api, path, needs=needs, weights=weights)
            self._plan.check_tensors(inputs, outputs)
            self._allocate(self._plan)
        except RunnerError as exc:
            self._free()
            raise EngineError(str(exc)) from exc
        except BaseException:
            self._free()
            raise
        self._usable = ""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the arrays given back are new.

        After a failed run the runner is not used again: the state of the GPU is not known then.

        Raises:
            RunnerError: the arrays do not fit `inputs`, their batch is not one the plan takes, the
                run failed, or the runner is closed or has failed before.
        """
        check_feeds(self.inputs, feeds)
        with self._lock:
            if self._usable or self._plan is None:
                raise RunnerError(f"{self._usable}; open the engine again")
            batch = self._plan.batch_of(feeds)
            try:
                return self._run(self._plan, feeds, batch)
            except BaseException as exc:
                self._usable = "it failed before"
                if isinstance(exc, RunnerError):
                    raise
                if isinstance(exc, Exception):
                    raise RunnerError(f"{self._device.name}: TensorRT failed: {exc}") from exc
                raise

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        with self._lock:
            if self._plan is not None:
                self._free()
                self._usable = "it is closed"

    def _allocate(self, plan: Plan) -> None:
        """Memory for every tensor at its largest, and its address set in the plan's context."""
        self._batch = 0
        self._plain_runs = 0
        self._graph: Graph | None = None
        self._host, self._memory = {}, {}
        for spec in (*self.inputs, *self.outputs):
            nbytes = spec.nbytes(plan.batch.max)
            self._host[spec.name] = self._device.host_memory(nbytes)
            self._memory[spec.name] = self._device.device_memory(nbytes)
            plan.set_address(spec.name, self._memory[spec.name].address)

    def _run(self, plan: Plan, feeds: Mapping[str, Array], batch: int) -> dict[str, Array]:
        self._device.make_current()
        if batch != self._batch:
            self._drop_graph()
            plan.set_shapes({spec.name: spec.concrete(batch) for spec in self.inputs})
            self._batch = batch
        for spec in self.inputs:
            given = np.ascontiguousarray(feeds[spec.name])
            self._host[spec.name].array[: given.nbytes] = given.reshape(-1).view(np.uint8)
        self._start(plan)
        self._device.synchronize()
        return {spec.name: self._result(spec) for spec in self.outputs}

    def _start(self, plan: Plan) -> None:
        """Put one run on the stream, as a graph from the second time on where that is possible."""
        # The first run of a shape may compile or allocate, which cannot be recorded.
        if self._graph is None and self._plain_runs == 1 and plan.recordable(self._device.stream):
            with contextlib.suppress(RunnerError):  # what is wrong otherwise fails below, too
                self._graph = self._device.record(lambda: self._enqueue(plan))
        if self._graph is not None:
            self._device.launch(self._graph)
            return
        self._enqueue(plan)
        self._plain_runs += 1

    def _enqueue(self, plan: Plan) -> None:
        for spec in self.inputs:
            size = spec.nbytes(self._batch)
            self._device.upload(self._host[spec.name], self._memory[spec.name], size)
        if not plan.enqueue(self._device.stream):
            raise RunnerError(f"{self._device.name}: TensorRT did not start: {plan.last_errors()}")
        for spec in self.outputs:
            size = spec.nbytes(self._batch)
            self._device.download(self._memory[spec.name], self._host[spec.name], size)

    def _result(self, spec: TensorSpec) -> Array:
        memory = self._host[spec.name].array[: spec.nbytes(self._batch)]
        shape = spec.concrete(self._batch)
        return memory.view(np.dtype(spec.dtype)).reshape(shape).copy()

    def _drop_graph(self) -> None:
        """A graph holds for the shapes it was recorded with."""
        self._plain_runs = 0
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _free(self) -> None:
        """Everything, in the reverse order of its making."""
        with contextlib.suppress(RunnerError):  # a GPU that failed is left to the driver
            self._device.make_current()
        if getattr(self, "_graph", None) is not None:
            self._drop_graph()
        self._plan = None  # TensorRT's objects go before the memory they point to
        self._host, self._memory = {}, {}
        self._device.close()
