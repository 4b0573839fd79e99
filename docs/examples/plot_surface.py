"""
A loss surface on filter-normalised directions
==============================================

Li et al. (2018), figures 1 and 5: the loss around a solution, in a plane of two random directions
whose filters have the norms of the model's. :doc:`/concepts/directions` says why they are scaled.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
end = pl.train(land, 1, pl.Adam(lr=1e-2), epochs=10, batch_size=100)[0][-1]

d1, d2 = pl.random_directions(land, 2, theta=end, seed=0)
surface = pl.plane(land, d1, d2, x=(-1, 1, 41), y=(-1, 1, 41), theta=end)
surface.plot("contour")
surface.plot("surface")
print(surface.check())
