"""Where training goes: recorded runs, their paths in a plane, distances between models.

recorder        recording any loop; lightning, transformers: the same as their callbacks
records, log, store   what a record holds, and the files
base, reading, sources   a trajectory, from whatever people have of a run, block by block
projection, components, embedding   paths in a plane, principal components, scaling of models
planes          the plane of a file, found again by the path
averaging       the average of a run's points, batch norm recomputed
similarity      functional distance, agreement; tracking: eigenvalues along training
"""
