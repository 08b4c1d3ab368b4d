"""Serving an engine: the Open Inference Protocol over HTTP and gRPC, and a repository for Triton.

settings    every limit of a server, as a value
signature   what a served model reads and gives
protocol    the Open Inference Protocol: bytes to requests, answers to bytes; no transport in it
engine      an engine that answers: its state, its queue, its threads
plane       the data plane: decode, validate, queue, infer, encode; no transport in it
classify    images in, the likeliest classes out
recording   what happened; metrics: for Prometheus; statistics: as the protocol has it
transport   what HTTP and gRPC share: limits, the budget of memory, traffic, logs
http        routes, deadlines, connections, signals, the page
grpc        the same data plane over gRPC
triton      a model repository for Triton
"""
