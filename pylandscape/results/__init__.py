"""What comes out: plain data classes with axes, values and where they come from.

base, loading   what they share: saving, plotting, `pylandscape.load`
curve, surface  L on lines and planes; smoothing, sanity (`check`), vtp (ParaView), foreign (files
                of Li et al.'s loss-landscape)
spectra, eigen_pairs   of one matrix
critical_points, curvature_classes, critical_set   classes of points; points that were found
walks, stagnations, cloud   walks and what they show
paths, tracks, similarity   trajectories and models compared
barrier_matrix, flatness_table   models pair by pair; flatness of one or many

Numbers that follow from a result alone (a barrier, counts, a density) are properties of its class.

A picture of each: plots/, which `results.base` asks for by name.
"""
