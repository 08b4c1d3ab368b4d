"""Runners: named arrays in, named arrays out.

base         the protocol, and the double
onnxruntime  ONNX Runtime, on the CPU or a CUDA device
split        stages as one runner
"""

from parnet_deploy.runtime.base import FunctionRunner, Runner
from parnet_deploy.runtime.onnxruntime import OnnxRuntimeRunner
from parnet_deploy.runtime.split import SplitRunner, StageRunner

__all__ = ["FunctionRunner", "OnnxRuntimeRunner", "Runner", "SplitRunner", "StageRunner"]
