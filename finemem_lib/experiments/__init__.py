"""Grids of training runs.

`design.load_design` reads the variants, regimes and seeds, `sweep.run_cells` trains the cells,
`tables.table` compares them with paired intervals, `arena.arena` judges them as the design planned.
"""
