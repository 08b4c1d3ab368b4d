"""The Open Inference Protocol (KServe v2): bytes to requests, answers to bytes.

datatypes  the protocol's names of element types
messages   the JSON of requests and responses, as values
wording    what a client sent, as an error message shows it
shapes     whether a tensor's shape is one that the model takes
tensors    arrays and encoded images, out of bytes or out of JSON
request    a body as a request, checked against the model's signature
response   outputs as a body
metadata   what a server and a model say of themselves

Beside the protocol itself there are three of Triton's extensions to it: binary tensors,
classification and model configuration. Nothing here knows of sockets, HTTP or threads.

References: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol,
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from parnet_deploy.serve.protocol.metadata import (
    ModelMetadata,
    ServerMetadata,
    TensorMetadata,
    model_config,
    model_metadata,
    server_metadata,
)
from parnet_deploy.serve.protocol.request import (
    HEADER_LENGTH,
    EncodedImages,
    InferRequest,
    WantedOutput,
    parse_request,
)
from parnet_deploy.serve.protocol.response import EncodedResponse, encode_response

__all__ = [
    "HEADER_LENGTH",
    "EncodedImages",
    "EncodedResponse",
    "InferRequest",
    "ModelMetadata",
    "ServerMetadata",
    "TensorMetadata",
    "WantedOutput",
    "encode_response",
    "model_config",
    "model_metadata",
    "parse_request",
    "server_metadata",
]
