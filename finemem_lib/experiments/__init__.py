"""Experiments: grids of training runs and their comparison.

`design.load_design` reads the variants, regimes and seeds, `sweep.run_cells` trains the cells,
`tables.table` compares them with paired intervals, `arena.arena` makes the comparisons that the
design plans.
"""
