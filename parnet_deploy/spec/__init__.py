"""Architecture as data: what a ParNet is, and everything that follows from it without a tensor.

tensor    TensorSpec: name, shape and dtype of an array that crosses a boundary
parnet    ParNetSpec: widths, streams, activation ...
layout    BlockSpec and StageSpec: the blocks, their order, and the cuts, derived from a spec
counts    depth, parameters and operations, derived from a layout
form      DeployForm: which of the equivalent deploy forms a target is given
precision Arithmetic: what a network computes in, and how far rounding may take it
targets   which backend takes which precision
quantisation  Quantisation: which numbers stand for which in int8 and fp8
learned   LearnedRanges: where activations' values lie, as a training found it
images    Preprocessing: how an image becomes the array the network reads
codec     these values as JSON, and back with every type checked
variants  the paper's networks and the small ones, by name
lookup    looking something up by the name that a person wrote
"""

from parnet_deploy.spec.codec import decode, encode
from parnet_deploy.spec.counts import BlockCounts, Counts, count, count_block, depth, depths
from parnet_deploy.spec.form import Backend, DeployForm, default_form
from parnet_deploy.spec.images import Preprocessing, default_crop_ratio
from parnet_deploy.spec.layout import (
    IMAGES,
    LOGITS,
    PREPROCESSED,
    BlockSpec,
    Cut,
    StageSpec,
    StemMode,
    cuts,
    layout,
    stages,
)
from parnet_deploy.spec.parnet import Activation, ParNetSpec
from parnet_deploy.spec.tensor import Array, TensorSpec, check_feeds
from parnet_deploy.spec.variants import VARIANTS, Variant, variant

__all__ = [
    "IMAGES",
    "LOGITS",
    "PREPROCESSED",
    "VARIANTS",
    "Activation",
    "Array",
    "Backend",
    "BlockCounts",
    "BlockSpec",
    "Counts",
    "Cut",
    "DeployForm",
    "ParNetSpec",
    "Preprocessing",
    "StageSpec",
    "StemMode",
    "TensorSpec",
    "Variant",
    "check_feeds",
    "count",
    "count_block",
    "cuts",
    "decode",
    "default_crop_ratio",
    "default_form",
    "depth",
    "depths",
    "encode",
    "layout",
    "stages",
    "variant",
]
