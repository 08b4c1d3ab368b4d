"""Benchmarks: contestants interleaved in one run, each in a process of its own (docs/benchmark.md).

benchmark    a whole one: who takes part, what is right, the contest, what it says
contestant   what takes part, as data
entries      engines, their other schedules, networks by name; images and right answers
peers        the same networks as others run them; peer_names: which there are
contest      processes that take turns
outcomes     from what they did to what is said of them
tolerances   how far answers may be off and still be right
result       what was found, as data
statistics   latencies in few numbers, ratios round by round
conditions   on what, and who else used it meanwhile; nvml: what GPUs tell
floor        what the device allows
report       tables, words, a page, files, the paper's tables
stage_times  what each stage takes alone, for plans
plan_table   kernels and streams of plans, without a GPU
"""
