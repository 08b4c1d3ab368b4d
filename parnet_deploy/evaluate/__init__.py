"""Evaluation: what a network gets right of a labelled data set, whatever form it is in.

subject     a network in any form: what runs it, and what it says of itself
graphs      a model's graph, run as it stands
loading     images made ready in threads
running     images through a network
measures    what is counted, over arrays
answers     what was answered, image by image, and counted
result      what was found, as values
evaluating  all of it, in order
report      the result, written
picture     the confusion matrix, drawn
"""

from parnet_deploy.evaluate.answers import Answers, measure
from parnet_deploy.evaluate.evaluating import evaluate
from parnet_deploy.evaluate.result import Crops, Evaluation, Measures, Problem
from parnet_deploy.evaluate.running import Options, Outcome, Progress, answer, choose_batch
from parnet_deploy.evaluate.subject import Subject, open_subject

__all__ = [
    "Answers",
    "Crops",
    "Evaluation",
    "Measures",
    "Options",
    "Outcome",
    "Problem",
    "Progress",
    "Subject",
    "answer",
    "choose_batch",
    "evaluate",
    "measure",
    "open_subject",
]
