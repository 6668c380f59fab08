"""What one notebook hands to the next.

Parameters and their checks, artefacts by name, and one record per notebook and run.
"""
