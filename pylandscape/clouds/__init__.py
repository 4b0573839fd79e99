"""Walks through parameter space and the clouds that they leave.

walks, walk_steps   gradient and random walks, all advanced together
clouds          a dot for every point: loss, gradient norm, curvature
roughness       bumpiness and ruggedness
"""
