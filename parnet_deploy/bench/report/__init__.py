"""What is said of a benchmark.

duel       who is faster, as far as the rounds can tell
table      all figures as tables; figures: how each is written
wording    what they say, in sentences; schedule_words: of the schedules
paper      the paper's tables beside ours
page       everything on one page; plots, plots_parity, plots_timeline: what is drawn on it
overlap    how much of the stages' time is side by side
saving     JSON, Markdown and the page on disk
"""
