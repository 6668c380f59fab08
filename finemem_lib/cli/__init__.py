"""The finemem command line.

`main.main` parses and carries out a command. `finemem run` resolves profile and parameters,
executes the notebooks, and writes the manifest and the report of the run.
"""
