"""The `finemem` command line.

Resolve a run's profile and parameters, execute the notebooks, write the manifest and report.
"""
