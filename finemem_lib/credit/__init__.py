"""Credit rules: which step earned the outcome.

A rule reads a trajectory, or its group, and returns one value per step; `rules.RULES` lists the
rules and `rules.assign` applies one by name.
"""
