"""Build instances from the public raw sets.

Read the raw files, cut them into chunks and questions, compare sizes with the published ones.
"""
