"""The lesson of notebooks 03 and 08.

Toy cases that can be checked by hand (`cases.toy`, `cases.duplicates`, ...), and exercises that
check themselves (`exercises.check_exercise`, `exercises.reveal`).
"""
