"""Eigenpairs, spectra and traces of the matrices of L at one point."""
