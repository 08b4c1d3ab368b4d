"""A model for Triton's Python backend: the same graph in the same ONNX Runtime, as users write it.

The configuration's parameters name the graph, the folder of packages, and whether the input is a
JPEG file (BYTES) instead of an array.
"""

import io
import json
import sys
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class TritonPythonModel:
    """One graph in one session."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open it with the options that parnet-deploy's runner has."""
        parameters = json.loads(args["model_config"])["parameters"]
        given = {name: value["string_value"] for name, value in parameters.items()}
        sys.path.insert(0, given["packages"])
        import onnxruntime

        if onnxruntime.__version__ != given["version"]:
            raise pb_utils.TritonModelException(f"this is ONNX Runtime {onnxruntime.__version__}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(given["threads"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            given["graph"], options, providers=["CPUExecutionProvider"]
        )
        self._is_jpeg = given["input"] == "jpeg"
        self._shape = self._session.get_inputs()[0].shape

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
        if self._is_jpeg:
            images = self._preprocess(images.reshape(-1)[0])
        (logits,) = self._session.run(["logits"], {"images": images})
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])

    def _preprocess(self, file: bytes) -> Any:
        from PIL import Image

        height, width = self._shape[2:]
        image = Image.open(io.BytesIO(file)).convert("RGB")
        scale = round(height / 0.875) / min(image.size)
        size = [int(side * scale) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
        return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)[None]
