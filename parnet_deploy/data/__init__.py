"""Data sets: labelled images, decoded one at a time, when they are asked for.

base         Samples, Split and DataSet: what every source gives
options      how a data set is opened
opening      data sets by what is written after --data
imagefolder  a folder of class folders: which split is where, and its samples
folders      what is in class folders
holdout      which images are held out, where nobody has split them
paths        very many paths, in memory that worker processes share
cifar        CIFAR-10 and CIFAR-100, as torchvision reads them
digits       scikit-learn's handwritten digits
arrays       samples in memory
npz          images, and perhaps labels, in an .npz
saving       samples written as image files
scanning     which images cannot be decoded, and why
matching     which logit answers for which class
naming       names in messages
"""

from parnet_deploy.data.arrays import ArraySamples
from parnet_deploy.data.base import DataSet, Part, Samples, Split
from parnet_deploy.data.imagefolder import FolderSamples
from parnet_deploy.data.matching import LabelMatch, match_labels
from parnet_deploy.data.npz import NpzImages, read_npz
from parnet_deploy.data.opening import is_source, open_data, open_learnt, open_samples
from parnet_deploy.data.saving import save_images
from parnet_deploy.data.scanning import Bad, scan

__all__ = [
    "ArraySamples",
    "Bad",
    "DataSet",
    "FolderSamples",
    "LabelMatch",
    "NpzImages",
    "Part",
    "Samples",
    "Split",
    "is_source",
    "match_labels",
    "open_data",
    "open_learnt",
    "open_samples",
    "read_npz",
    "save_images",
    "scan",
]
