"""Benchmarks: contestants interleaved in one run, each in a process of its own.

contestant   what takes part, as data
statistics   latencies in few numbers, ratios round by round
result       what was found, as data
"""
