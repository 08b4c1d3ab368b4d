"""Quantisation-aware training: the weights stay those of the training form.

rounding  fake quantisers: the numbers that a quantised value stands for, with gradients
ranges    TensorRanges: where every activation's values lie, and its fake quantiser
network   FakeQuantisedParNet: folds every block, then quantises it, in every step
"""
