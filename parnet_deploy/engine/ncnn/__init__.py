"""ncnn engines (docs/ncnn.md).

builder     writes them
convert     an ONNX graph as ncnn's layers
operators   ONNX's operators, a function each
conversion  what is known meanwhile: values, and who reads them
values      values as channels of ncnn's blobs
layers      the layers that are put together, and the two files that they become
"""
