"""An engine that answers: its state, what waits for it, and the threads in between.

model       its state: starting, ready, failed, draining, stopped; requests are let in here
ticket      a request that was let in
queue       what waits: coroutines put jobs in, threads take them out
batching    jobs that are run together, and their answers taken apart
worker      the threads
inference   what an engine's thread does
warming     the runs before it is ready
restarting  an engine that is opened again after a failure
unanswered  every refusal: what clients are told, and what it counts as
"""
