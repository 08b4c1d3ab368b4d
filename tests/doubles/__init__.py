"""Doubles of what a machine without a GPU does not have."""
