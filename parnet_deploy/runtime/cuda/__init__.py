"""Stages on one or several GPUs as one runner (docs/runtime.md).

runner     stages -> GPUs, programs, lanes; lends a lane to each caller
schedule   what is done in a run, and who waits for whom: data, no CUDA
lanes      lends lanes to callers, one at a time
lane       what one run at a time needs: memory, streams, executions
playback   steps on their streams: events, recorded graphs, times
stage      what a stage must be able to do: Program and Execution
device     a GPU: every call of CUDA's driver
"""
