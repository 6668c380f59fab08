"""Judge managers and credit rules.

Tables with bootstrap intervals, operations against the planted truth, credit rules against the
planted cause.
"""
