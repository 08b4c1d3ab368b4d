"""A plan, loaded: TensorRT's runtime, engine and execution context as one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.tensorrt_api import message_log
from parnet_deploy.runtime.tensorrt_target import PlanTarget
from parnet_deploy.spec import Array, TensorSpec

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""numpy's names of TensorRT's element types."""


@dataclass(kw_only=True, slots=True)
class Plan:
    """A loaded plan. Its parts are kept in the order in which TensorRT needs them to live.

    Attributes:
        batch: images per run that it takes.
    """

    log: Any
    runtime: Any
    engine: Any
    context: Any
    batch: BatchRange
    api: Any

    def check_tensors(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        """Compare the plan's own inputs and outputs with those it is said to have.

        Raises:
            EngineError: they differ.
        """
        mode = self.api.TensorIOMode
        said = {(spec.name, mode.INPUT, spec.dtype, _axes(spec.shape)) for spec in inputs}
        said |= {(spec.name, mode.OUTPUT, spec.dtype, _axes(spec.shape)) for spec in outputs}
        found = {self._tensor(self.engine.get_tensor_name(i)) for i in self._tensor_numbers()}
        if said != found:
            raise EngineError(
                f"the plan does not have the inputs and outputs of its manifest: it has "
                f"{_words(found)}, and {_words(said)} are needed"
            )

    def batch_of(self, feeds: Mapping[str, Array]) -> int:
        """How many images are fed.

        Raises:
            RunnerError: the inputs differ in it, or it is not one that the plan takes.
        """
        sizes = {int(array.shape[0]) for array in feeds.values()}
        if len(sizes) != 1:
            raise RunnerError(f"the inputs are of different batches: {sorted(sizes)}")
        size = sizes.pop()
        if not self.batch.min <= size <= self.batch.max:
            raise RunnerError(
                f"a batch of {size} was given, and the plan takes {self.batch.min} to "
                f"{self.batch.max}; build it with another --batch at export"
            )
        return size

    def set_address(self, name: str, address: int) -> None:
        """Where a tensor lies on the GPU.

        Raises:
            RunnerError: TensorRT refuses.
        """
        if not self.context.set_tensor_address(name, address):
            raise RunnerError(f"TensorRT refused the memory of '{name}': {self.last_errors()}")

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Shapes of all inputs of the runs to come.

        Raises:
            RunnerError: TensorRT refuses.
        """
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise RunnerError(f"TensorRT refused {name}{list(shape)}: {self.last_errors()}")
        if missing := self.context.infer_shapes():
            raise RunnerError(f"TensorRT lacks the shapes of {list(missing)}")

    def enqueue(self, stream: int) -> bool:
        """Put one run on a stream. False where it could not be started."""
        return bool(self.context.execute_async_v3(stream))

    def recordable(self, stream: int) -> bool:
        """Whether a run can be recorded as a CUDA graph; only TensorRT RTX can tell it is not."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def last_errors(self) -> str:
        """What TensorRT last complained of, in one line."""
        return str(self.log.last_errors())

    def _tensor_numbers(self) -> range:
        return range(self.engine.num_io_tensors)

    def _tensor(self, name: str) -> tuple[str, Any, str, tuple[int, ...]]:
        dtype = self.engine.get_tensor_dtype(name).name
        shape = tuple(int(size) for size in self.engine.get_tensor_shape(name))
        return name, self.engine.get_tensor_mode(name), _DTYPES.get(dtype, dtype), shape


def load_plan(
    api: Any, path: Path, *, needs: PlanTarget | None = None, weights: Path | None = None
) -> Plan:
    """Load a plan onto the current GPU.

    Args:
        api: TensorRT's module.
        path: the plan.
        needs: what its manifest says of it.
        weights: the ONNX file it was built from, where its weights were stripped.

    Raises:
        EngineError: it cannot be read, is damaged or of another version, or lacks its weights.
    """
    log = message_log(api)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise EngineError(f"cannot read {path}: {exc.strerror or exc}") from exc
    try:
        runtime = api.Runtime(log)
        if needs is not None and needs.version_compatible:
            # Such a plan carries the runtime of its own version; the bundle's sha256 was checked.
            runtime.engine_host_code_allowed = True
        _check_validity(api, runtime, data, path)
        engine = runtime.deserialize_cuda_engine(data)
    except (RuntimeError, TypeError) as exc:  # how its bindings report a failed constructor
        raise EngineError(f"{path} does not load: {log.last_errors()}") from exc
    if engine is None:
        raise EngineError(f"{path} does not load: {log.last_errors()}")
    if needs is not None and needs.weights == "stripped":
        _refit(api, log, engine, path, weights)
    context = engine.create_execution_context()
    if context is None:
        raise EngineError(f"{path} loads, but not its working memory: {log.last_errors()}")
    batch = _batch(api, engine)
    return Plan(log=log, runtime=runtime, engine=engine, context=context, batch=batch, api=api)


def _check_validity(api: Any, runtime: Any, data: bytes, path: Path) -> None:
    """Let TensorRT RTX look at the plan's first bytes; TensorRT itself has no such call."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(data[: runtime.engine_header_size])
    if validity == api.EngineValidity.INVALID:
        flags = api.EngineInvalidityDiagnostics.__members__
        named = [name for name, flag in flags.items() if int(flag) & int(diagnostics)]
        raise EngineError(f"{path} is not valid here: {', '.join(named) or 'no reason was given'}")


def _refit(api: Any, log: Any, engine: Any, path: Path, weights: Path | None) -> None:
    """Put the weights of an ONNX file into a weight-stripped plan."""
    if weights is None:
        raise EngineError(f"{path} has no weights, and the model they lie in was not given")
    refitter = api.Refitter(engine, log)
    parser = api.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        missing = list(refitter.get_missing_weights())
        raise EngineError(
            f"the weights of {weights} do not fit {path}: {log.last_errors()}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
        )


def _batch(api: Any, engine: Any) -> BatchRange:
    """The batch range of the only optimization profile, or the fixed size."""
    names = (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
    name = next(n for n in names if engine.get_tensor_mode(n) == api.TensorIOMode.INPUT)
    first = int(engine.get_tensor_shape(name)[0])
    if first >= 0:
        return BatchRange(min=first, opt=first, max=first)
    low, opt, high = (int(shape[0]) for shape in engine.get_tensor_profile_shape(name, 0))
    return BatchRange(min=low, opt=opt, max=high)


def _axes(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    """A shape as TensorRT gives it: what is not fixed is -1."""
    return tuple(-1 if isinstance(size, str) else size for size in shape)


def _words(tensors: set[tuple[str, Any, str, tuple[int, ...]]]) -> str:
    parts = (f"{mode.name.lower()} {name} {dtype}{list(s)}" for name, mode, dtype, s in tensors)
    return ", ".join(sorted(parts)) or "none"
