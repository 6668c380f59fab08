"""Grids of training runs.

A design names variants, regimes and seeds; a sweep trains its cells; tables compare them with
paired intervals.
"""
