"""Serving an engine: over HTTP with the Open Inference Protocol, and as a repository for Triton.

settings    every limit of a server, as a value
signature   what a served model reads and gives
protocol    the Open Inference Protocol: bytes to requests, answers to bytes; no transport in it
model       an engine that answers: its state, its queue, its threads
plane       the data plane: decode, validate, queue, infer, encode; no transport in it
recording   what happened, as Prometheus metrics and as the protocol's statistics
http        the transport: routes, deadlines, limits, signals, logs, the page
triton      a model repository for Triton
"""
