"""Toy cases and self-checking exercises for notebooks 03, 08 and 10.

The numbers of the cases can be computed by hand (`cases.toy`, `cases.duplicates`, ...);
`exercises.check_exercise` checks an answer, `exercises.reveal` shows a value after a prediction.
"""
