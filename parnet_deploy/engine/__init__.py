"""Engines: what a backend makes of ONNX graphs. One file per kind of engine; none needs torch.

base               BuildOptions, the builder protocol, build_engine
placement          which stage runs on which device
plan               a placement in a file
recorded           the options that an engine was built with
figures            peak figures of the devices here
cores              how many of a CPU's cores each stage has
onnxruntime        sessions optimised once and saved
openvino           graphs in OpenVINO's format
ncnn               graphs as ncnn's layers
tensorrt           TensorRT and TensorRT RTX plans
choose             which backend is fastest here, and why not the others
"""

from parnet_deploy.engine.base import (
    WHOLE,
    Builder,
    BuildOptions,
    BuildStage,
    ProviderChoice,
    build_engine,
    build_stages,
)
from parnet_deploy.engine.choose import choose_backend, make_builder
from parnet_deploy.engine.recorded import recorded_options

__all__ = [
    "WHOLE",
    "BuildOptions",
    "BuildStage",
    "Builder",
    "ProviderChoice",
    "build_engine",
    "build_stages",
    "choose_backend",
    "make_builder",
    "recorded_options",
]
