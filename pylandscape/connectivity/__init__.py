"""Are two solutions one valley, and how flat is it.

lines           barriers on the straight lines between models
curves          curves of low loss between two models, and their planes
aligning        one model's units in the order of another's: symmetries (of any network, by
                axis_rules over the axes of its operations), matching
merging         the plane through a model and two fine-tuned from it
flatness_measures   sharpness measures of a model, in one table
asymmetric_valleys  loss to both sides of a point, along any directions

The way goes on in runs/chunks.py and `Landscape.prepare`; results/barrier_matrix,
mode_connection, model_alignment, flatness_table, asymmetry_profiles.
"""
