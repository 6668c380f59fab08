"""Helpers without a subject of their own.

Files written whole or not at all, versions and commit, terminal output, progress.
"""
