"""A model repository for the Triton Inference Server.

settings    how it is to be written, as a value
text        protocol buffers' text format
config      one model's configuration, as a value and as ``config.pbtxt``
models      an engine as models of Triton's: the whole as one, a split one as an ensemble
graphs      what each model's version folder holds
checking    whether it is what the engine is: a repository that fails is not put in place
deploy      how to start it: README, a compose file, a KServe InferenceService
repository  all of it written, or nothing
"""

from parnet_deploy.serve.triton.config import ModelConfig
from parnet_deploy.serve.triton.repository import (
    MARKER,
    Repository,
    refuse_output,
    write_repository,
)
from parnet_deploy.serve.triton.settings import RepositorySettings

__all__ = [
    "MARKER",
    "ModelConfig",
    "Repository",
    "RepositorySettings",
    "refuse_output",
    "write_repository",
]
