"""GPUs that are not there: a double of CUDA's driver, shipped so that plans can be tried anywhere.

driver    the functions of ``cuda.bindings.driver``
machine   GPUs, streams and memory, and what is sure to come before what
handles   contexts, streams, events, graphs as the driver hands them out
work      pieces of work, done when somebody waits for them
program   a Python function as a stage
"""
