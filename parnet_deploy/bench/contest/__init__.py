"""The contest: who runs when, and the processes that they run in.

holding    rounds, turns, and who is left out
process    a contestant's process as the benchmark holds it
environment  the variables that it gets
messages   what the two say to each other
worker     that process: opens a contestant, times its runs
openers    from a contestant, which is data, to a runner; opened: what they give
measure    a turn, and memory
"""
