"""Who takes part, and what is right.

schedules      an engine and its model's other schedules
networks       engines of models and of variants by name
timm_networks  the paper's other networks; graph_engine: engines of graphs that are in no bundle
images         what all are fed
reference      the training form's answers, and how near others' are to them
preparing      what needs a training framework, in a process of its own
"""
