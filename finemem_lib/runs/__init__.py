"""What one notebook hands to the next.

`run.start_run` opens the record of one notebook: its parameters, what it reads and writes
(`artefacts.Artefact`), and its results.
"""
