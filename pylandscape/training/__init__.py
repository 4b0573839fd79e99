"""Training: runs of a landscape's model advanced side by side, recorded as trajectories."""
