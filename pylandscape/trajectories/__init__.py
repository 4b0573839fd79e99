"""Where training goes: recorded runs, their paths in a plane, distances between models."""
