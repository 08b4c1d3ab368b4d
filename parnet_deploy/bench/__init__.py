"""Benchmarks: contestants interleaved in one run, each in a process of its own.

contestant   what takes part, as data
statistics   latencies in few numbers, ratios round by round
result       what was found, as data
duel         who is faster, as far as the rounds can tell
table        all figures as tables; figures: how each is written
wording      what they say, in sentences; schedule_words: of the schedules
paper        the paper's tables beside ours
page         everything on one page; plots, plots_parity, plots_timeline: what is drawn on it
saving       JSON, Markdown and the page on disk
"""
