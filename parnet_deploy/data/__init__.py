"""Data sets: labelled images, decoded one at a time, when they are asked for.

base    Samples and DataSet: what every source gives
"""

from parnet_deploy.data.base import DataSet, Samples

__all__ = ["DataSet", "Samples"]
