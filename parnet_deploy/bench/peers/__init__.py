"""The benchmark's peers: the same network, each as its own users would run it.

base           what a peer is, and what it is asked to run
runner         a function of images as a runner
graphs         the network as a plain ONNX graph, by this project and by torch
torch_model    a network in torch, called on arrays
torch_eager    torch, operator by operator
torch_compile  torch.compile
onnxruntime    ONNX Runtime with its defaults
openvino       OpenVINO with its hint for latency
ncnn           ncnn, converted by pnnx
mnn            MNN
tensorrt       TensorRT and TensorRT RTX
"""

from __future__ import annotations

from collections.abc import Mapping

from parnet_deploy.bench.peers.base import Peer, Preparation
from parnet_deploy.bench.peers.mnn import MNN
from parnet_deploy.bench.peers.ncnn import NCNN
from parnet_deploy.bench.peers.onnxruntime import ONNXRUNTIME, TORCH_ONNX
from parnet_deploy.bench.peers.openvino import OPENVINO
from parnet_deploy.bench.peers.tensorrt import TENSORRT, TENSORRT_RTX
from parnet_deploy.bench.peers.torch_compile import TORCH_COMPILE, TORCH_COMPILE_FUSED
from parnet_deploy.bench.peers.torch_eager import TORCH, TORCH_FUSED
from parnet_deploy.errors import UsageError

__all__ = ["PEERS", "Peer", "Preparation", "find_peer"]

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        TORCH,
        TORCH_FUSED,
        TORCH_COMPILE,
        TORCH_COMPILE_FUSED,
        ONNXRUNTIME,
        TORCH_ONNX,
        OPENVINO,
        NCNN,
        MNN,
        TENSORRT,
        TENSORRT_RTX,
    )
}
"""By the names that ``--against`` takes."""


def find_peer(name: str) -> Peer:
    """A peer by its name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in PEERS:
        raise UsageError(f"a peer is one of {', '.join(PEERS)}; not '{name}'")
    return PEERS[name]
