"""Where training goes: recorded runs, their paths in a plane, distances between models.

recorder        recording any loop; lightning, transformers: the same as their callbacks
records, log, store   what a record holds, and the files
base, reading, sources   a trajectory, from whatever people have of a run, block by block
projection, components, embedding   paths in a plane, principal components, scaling of models
similarity      functional distance, agreement; tracking: eigenvalues along training
"""
