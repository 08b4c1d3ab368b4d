"""Export: a network becomes ONNX graphs, whole and cut into stages.

builder     one method per ONNX operator
blocks      every block as ONNX operators
graph       the whole network as one graph
quantising  what int8 and fp8 make of it: ranges, what is kept, what it costs
likeness    whether calibration images are like those of the training
magnitudes  values that a lower precision could not hold
stages      the cuts: one graph per stage
weights     weights stored once, shared by all graphs
gate        stages joined together must equal the whole
model       export_model: all of it, into a bundle
"""

from parnet_deploy.export.graph import ExportOptions, whole_graph
from parnet_deploy.export.model import export_model, save_with_weights

__all__ = ["ExportOptions", "export_model", "save_with_weights", "whole_graph"]
