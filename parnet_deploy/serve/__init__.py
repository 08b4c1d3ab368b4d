"""Serving an engine: over HTTP with the Open Inference Protocol, and as a repository for Triton.

settings    every limit of a server, as a value
signature   what a served model reads and gives
protocol    the Open Inference Protocol: bytes to requests, answers to bytes; no transport in it
queue       what waits: put in by coroutines, taken out by threads, or dropped
worker      threads that do what waits
batching    requests put together into what an engine takes
warming     first runs of an engine
restarting  an engine that is opened again when it has failed
inference   requests run on it: what its threads do
ticket      a request that was let in
model       all of that as one: an engine that answers, its state and its limits
unanswered  why a request has no answer
classify    image files to rows, answers to labels
plane       the data plane: decode, validate, queue, infer, encode; no transport in it
recording   what happened, in counts
metrics     the same for Prometheus
statistics  the same in the protocol's words
http        the transport: routes, deadlines, limits, signals, logs, the page
triton      a model repository for Triton
"""
