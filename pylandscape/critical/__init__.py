"""Critical points: classified, found, and the symmetries that relate them.

classification  `classify`: exact, or by Lanczos (lanczos_classifier); kinks: points near one
find, search, certificates   `find_critical_points`: runs, steps, what certifies a point
symmetry, group_actions, canonical, alignment, mlp_structure   equal networks under permutations
monotone        paths that never rise; linear_networks: every critical point in closed form
end_points      how tree-like the ends of many runs lie; fitness   losses against distances
"""
