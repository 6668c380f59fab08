"""Credit rules: which step earned the outcome.

A rule reads a trajectory, or its group, and returns one value per step. `rules.RULES` lists the
rules; `rules.assign` applies one by name and counts the reader calls that it takes.
"""
