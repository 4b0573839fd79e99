"""L along lines, over planes and between models, and what is measured there.

grids           `line`, `plane`, `interpolate`: which points a picture needs
evaluation      a grid becomes a result: evaluate, resume or load
convexity_map   |lambda_min / lambda_max| over a surface; picture_curvature: across it
"""
