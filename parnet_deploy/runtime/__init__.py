"""Runners: named arrays in, named arrays out.

base             the protocol, and the double
onnxruntime      ONNX Runtime, on the CPU or a CUDA device
onnxruntime_cuda stages of its CUDA provider, with memory and a stream that they are given
openvino         OpenVINO, on the CPU
ncnn             ncnn, on the CPU
ncnn_param       its layers as text
tensorrt         stages of TensorRT and TensorRT RTX
tensorrt_api     their modules as a value, and their messages
tensorrt_plan    a plan, loaded
tensorrt_target  what a plan runs on
plan_text        kernels and streams as a TensorRT RTX plan tells them
plan_types       what a plan's convolutions really compute in
cuda             stages on one or several GPUs as one runner
simulated        GPUs that are not there: a double of the driver
timeline         when stages ran, and compute alone: what some runners can tell
split            stages as one runner, each with a runner of its own
batches          any number of images through a runner
outputs          what networks give, as it is compared
open             an engine bundle as a runner, whatever is in it
target           what a saved ONNX Runtime graph depends on
machine          what this machine has
cpu              its CPU
awake            its processors kept out of idle states
trial            whether a provider really runs
"""

from parnet_deploy.runtime.base import FunctionRunner, Runner
from parnet_deploy.runtime.batches import run_batches
from parnet_deploy.runtime.onnxruntime import OnnxRuntimeRunner
from parnet_deploy.runtime.open import open_runner, rebuild_command
from parnet_deploy.runtime.split import SplitRunner, StageRunner

__all__ = [
    "FunctionRunner",
    "OnnxRuntimeRunner",
    "Runner",
    "SplitRunner",
    "StageRunner",
    "open_runner",
    "rebuild_command",
    "run_batches",
]
