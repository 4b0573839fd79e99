"""
Where several runs go
=====================

Zhang et al., *Theory of deep learning II*, figure 3: eight runs from one start over different
mini-batches, laid out in the plane by the distances between their points.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
starts = land.theta.repeat(8, 1)  # eight runs from one point, each with mini-batches of its own
runs = pl.train(land, starts, pl.SGD(lr=0.3), epochs=20, batch_size=10, own_order=True)

pl.mds(runs, distance="euclidean").plot()
