"""
How many basins has a surface?
==============================

A picture is an impression; a merge tree is a number. Each minimum of the grid, the saddle where its
basin meets a deeper one, and the height between: its persistence.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
runs = pl.train(land, 4, pl.Adam(lr=1e-2), epochs=10, batch_size=100)

ends = [run[-1] for run in runs]  # the corners of a bilinear surface
topology = pl.interpolate(land, ends, x=(-0.3, 1.3, 65), y=(-0.3, 1.3, 65)).topology()
print(topology)
topology.draw("tree")
topology.draw("barcode")
