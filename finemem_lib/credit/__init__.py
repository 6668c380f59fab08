"""Credit rules: assign the outcome of a trajectory to its steps.

A rule reads a trajectory, or its group, and returns one value per step. `rules.RULES` lists the
rules; `rules.assign` applies a rule by name and counts the reader calls that it makes.
"""
