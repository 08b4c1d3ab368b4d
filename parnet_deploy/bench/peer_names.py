"""Names of the peers, for whoever only says which there are: nothing is imported here."""

from __future__ import annotations

PEER_NAMES = (
    "torch",
    "torch-fused",
    "torch-compile",
    "torch-compile-fused",
    "onnxruntime",
    "torch-onnx",
    "openvino",
    "ncnn",
    "mnn",
    "tensorrt",
    "tensorrt-rtx",
)
"""What ``--against`` takes: the keys of `parnet_deploy.bench.peers.PEERS`, in their order."""
