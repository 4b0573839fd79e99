"""Matrices of L at a point: products, eigenpairs, spectra, traces.

operators       a landscape's matrix, or any other, as a `SymmetricOperator` (symmetric_operator;
                foreign_operators: of other packages)
lanczos         the Python side of csrc/lanczos; device_passes: its basis on a GPU; tall: products
                with a basis
eigen, spectra, traces   what is asked: eigenpairs, densities, estimates; ends: both ends cheaply
gradient_subspace   gradients against the top eigenvectors: outliers, rates
at_points       exact Hessians of many points (engines/points)
"""
