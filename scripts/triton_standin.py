"""A model for Triton's Python backend that does what its ONNX Runtime backend would: for tests.

It stands beside ``model.onnx`` as ``model.py``. Requests that Triton puts together are run as one
batch. Where TRITON_STANDIN_LOG names a folder, every run is noted there: one JSON line with the
model, the batch of each of its requests, and when it began and ended; a file ``pause`` in it holds
seconds that every run takes longer.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

LOG = os.environ.get("TRITON_STANDIN_LOG")


class TritonPythonModel:
    """One graph in one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph with the threads that the configuration gives it."""
        config = json.loads(args["model_config"])
        # As Triton's own backend: where nothing is said, ONNX Runtime takes every core.
        threads = config["parameters"].get("intra_op_thread_count", {"string_value": "0"})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads["string_value"])
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._name = args["model_name"]
        self._batched = config["max_batch_size"] > 0
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run what was put together at once, or each request where the batch is fixed."""
        begin = time.monotonic()
        feeds = [{name: _array(request, name) for name in self._inputs} for request in requests]
        if not self._batched or len(requests) == 1:
            results = [self._run(feed) for feed in feeds]
        else:
            results = self._run_together(feeds)
        self._note(begin, [len(feed[self._inputs[0]]) for feed in feeds])
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, result[name])
                    for name in self._outputs
                    if name in request.requested_output_names()
                ]
            )
            for request, result in zip(requests, results, strict=True)
        ]

    def _run_together(self, feeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in self._inputs}
        found = self._run(joined)
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in feeds])[:-1]
        parts = {name: np.split(array, ends) for name, array in found.items()}
        return [
            {name: parts[name][number] for name in self._outputs} for number in range(len(feeds))
        ]

    def _run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def _note(self, begin: float, batches: list[int]) -> None:
        if LOG is None:
            return
        pause = Path(LOG) / "pause"
        if pause.exists():
            time.sleep(float(pause.read_text()))
        run = {"model": self._name, "begin": begin, "end": time.monotonic(), "batches": batches}
        with (Path(LOG) / f"{self._name}-{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(run) + "\n")


def _array(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()
