"""The network in torch.

blocks      the blocks in training form
parnet      ParNet: the blocks of a layout, run in order
folds       pure folds: tensors in, tensors out, in float64
deploy      the blocks in deploy form
fuse        training form -> deploy form
initialise  seeded, untrained networks
official    names and shapes of the authors' released checkpoints
checkpoint  reading and writing weights
ensemble    networks of one stream joined into one whose streams they are
runner      a network as a runner
"""

from parnet_deploy.net.checkpoint import (
    Checkpoint,
    TrainingFacts,
    load_checkpoint,
    load_for_finetuning,
    save_checkpoint,
    with_classes,
)
from parnet_deploy.net.deploy import DeployParNet
from parnet_deploy.net.fuse import fuse
from parnet_deploy.net.initialise import calibrate, initialise
from parnet_deploy.net.parnet import BlockGraph, ParNet
from parnet_deploy.net.runner import TorchRunner

__all__ = [
    "BlockGraph",
    "Checkpoint",
    "DeployParNet",
    "ParNet",
    "TorchRunner",
    "TrainingFacts",
    "calibrate",
    "fuse",
    "initialise",
    "load_checkpoint",
    "load_for_finetuning",
    "save_checkpoint",
    "with_classes",
]
