"""Training: recipes and data in, a checkpoint out.

recipe  Recipe: how to train, as data
data    data sets as arrays, with a fixed test split
augment random shifts, turns and zooms of a batch
loop    train and count_correct
run     a training run's folder: checkpoint, metrics, what was done
"""

from parnet_deploy.train.data import DATA_SETS, DataSet, Split, load_data, save_images
from parnet_deploy.train.loop import EpochMetrics, count_correct, train
from parnet_deploy.train.recipe import RECIPES, Augmentation, Recipe, find_recipe
from parnet_deploy.train.run import RunSummary, train_run

__all__ = [
    "DATA_SETS",
    "RECIPES",
    "Augmentation",
    "DataSet",
    "EpochMetrics",
    "Recipe",
    "RunSummary",
    "Split",
    "count_correct",
    "find_recipe",
    "load_data",
    "save_images",
    "train",
    "train_run",
]
