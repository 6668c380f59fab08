"""The finemem command line.

`main.main` reads the command; a run's profile and parameters are resolved, its notebooks executed,
and its manifest and report written.
"""
