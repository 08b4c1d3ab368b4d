"""A plan, loaded: TensorRT's runtime and engine as one thing, and its execution contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import EngineError, RunnerError
from parnet_deploy.runtime.cuda.device import Stream
from parnet_deploy.runtime.tensorrt_api import message_log
from parnet_deploy.runtime.tensorrt_target import PlanTarget
from parnet_deploy.spec import TensorSpec

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
    """A loaded plan: a `cuda.stage.Program`.

    Its parts are kept in the order in which TensorRT needs them to live.

    Attributes:
        inputs: what it reads.
        batch: images per run that it takes.
    """

    log: Any
    runtime: Any
    engine: Any
    inputs: tuple[TensorSpec, ...]
    batch: BatchRange

    def execution(self, stream: Stream, addresses: Mapping[str, int]) -> PlanExecution:
        """Get ready to run, in a context with working memory of its own.

        Raises:
            EngineError: there is too little memory.
            RunnerError: TensorRT refuses the memory of its inputs and outputs.
        """
        context = self.engine.create_execution_context()
        if context is None:
            raise EngineError(f"there is no working memory for it: {self.log.last_errors()}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise RunnerError(
                    f"TensorRT refused the memory of '{name}': {self.log.last_errors()}"
                )
        return PlanExecution(plan=self, context=context, stream=int(stream))


@dataclass(kw_only=True, slots=True)
class PlanExecution:
    """A plan in an execution context: a `cuda.stage.Execution`. The plan must outlive it."""

    plan: Plan
    context: Any
    stream: int

    def set_batch(self, batch: int) -> None:
        """Set the shapes of the runs to come.

        Raises:
            RunnerError: TensorRT refuses.
        """
        for spec in self.plan.inputs:
            shape = spec.concrete(batch)
            if not self.context.set_input_shape(spec.name, shape):
                reason = self.plan.log.last_errors()
                raise RunnerError(f"TensorRT refused {spec.name}{list(shape)}: {reason}")
        if missing := self.context.infer_shapes():
            raise RunnerError(f"TensorRT lacks the shapes of {list(missing)}")

    def enqueue(self) -> None:
        """Put one run on the stream.

        Raises:
            RunnerError: it could not be started.
        """
        if not self.context.execute_async_v3(self.stream):
            raise RunnerError(f"TensorRT did not start: {self.plan.log.last_errors()}")

    def recordable(self) -> bool:
        """Whether a run can be recorded as a CUDA graph; only TensorRT RTX can tell it is not."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return ask is None or bool(ask(self.stream))


def load_plan(
    api: Any,
    path: Path,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    needs: PlanTarget | None = None,
    weights: Path | None = None,
) -> Plan:
    """Load a plan onto the current GPU.

    Args:
        api: TensorRT's module.
        path: the plan.
        inputs: what it is said to read.
        outputs: what it is said to give.
        needs: what its manifest says of it.
        weights: the ONNX file it was built from, where its weights were stripped.

    Raises:
        EngineError: it cannot be read, is damaged or of another version, lacks its weights, or is
            not one of these inputs and outputs.
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
    _check_tensors(api, engine, inputs, outputs)
    batch = _batch(api, engine)
    return Plan(log=log, runtime=runtime, engine=engine, inputs=inputs, batch=batch)


def _check_tensors(
    api: Any, engine: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Compare the plan's own inputs and outputs with those it is said to have."""
    mode = api.TensorIOMode
    said = {(spec.name, mode.INPUT, spec.dtype, _axes(spec.shape)) for spec in inputs}
    said |= {(spec.name, mode.OUTPUT, spec.dtype, _axes(spec.shape)) for spec in outputs}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {_tensor(engine, name) for name in names}
    if said != found:
        raise EngineError(
            f"the plan does not have the inputs and outputs of its manifest: it has "
            f"{_words(found)}, and {_words(said)} are needed"
        )


def _tensor(engine: Any, name: str) -> tuple[str, Any, str, tuple[int, ...]]:
    dtype = engine.get_tensor_dtype(name).name
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    return name, engine.get_tensor_mode(name), _DTYPES.get(dtype, dtype), shape


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
