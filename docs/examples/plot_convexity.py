"""
Is the picture as convex as it looks?
=====================================

Li et al. (2018), figure 7: at each point of the plane the ratio of the Hessian's smallest to its
largest eigenvalue. Near 0 the loss is nearly convex in all directions, also those not drawn.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
end = pl.train(land, 1, pl.Adam(lr=1e-2), epochs=15, batch_size=100)[0][-1]

d1, d2 = pl.random_directions(land, 2, theta=end, seed=0)
pl.convexity(land, d1, d2, x=(-1, 1, 7), y=(-1, 1, 7), theta=end).plot(metric="ratio", kind="heat")
