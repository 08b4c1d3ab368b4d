"""Calibration images, and a small graph whose tensors are looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from parnet_deploy.quantise.images import CalibrationImages, open_images
from parnet_deploy.spec import Preprocessing

SIZE = (8, 8)
READ = Preprocessing(size=SIZE, crop_ratio=1.0)


def images(
    folder: Path, count: int = 5, *, in_graph: bool = False, size: tuple[int, int] = SIZE
) -> CalibrationImages:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, *size), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    preprocessing = Preprocessing(size=size, crop_ratio=1.0, in_graph=in_graph)
    return open_images(str(folder / "images.npz"), preprocessing)


def convolutions(batch: int | str = 1, *, scale: float = 1.0) -> onnx.ModelProto:
    """images -> first -> (ReLU) second, and beside them what is 0 and what is infinite."""
    kernel = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32) * scale
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["first"], pads=[1] * 4),
            helper.make_node("Relu", ["first"], ["second"]),
            helper.make_node("Mul", ["first", "zero"], ["nothing"]),
            helper.make_node("Div", ["first", "nothing"], ["broken"]),
            helper.make_node("GlobalAveragePool", ["second"], ["logits"]),
        ],
        "two",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 4, 1, 1])],
        [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
