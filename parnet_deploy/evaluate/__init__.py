"""Evaluation: what a network or an engine gets right of a labelled data set."""
