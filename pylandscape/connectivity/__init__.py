"""Are two solutions one valley, and how flat is it.

lines           barriers on the straight lines between models
flatness_measures   sharpness measures of one or many models, in one table

The way goes on in runs/chunks.py and `Landscape.prepare`; results/barrier_matrix, flatness_table.
"""
