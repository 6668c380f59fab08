"""Runs of notebooks: parameters, artefacts passed between notebooks, and records.

`run.start_run` opens the record of one notebook: its parameters, the artefacts that it reads and
writes (`artefacts.Artefact`), and its results.
"""
