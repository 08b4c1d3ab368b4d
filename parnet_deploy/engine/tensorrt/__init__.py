"""TensorRT and TensorRT RTX engines (docs/tensorrt.md).

builder    writes plans, by one code for both
options    which options a flavour and version has
settings   options written into the builder's configuration
inspect    kernels and streams as TensorRT's inspector tells them
"""
