"""
The path of training, on the plane that holds most of it
========================================================

Li et al. (2018), figure 9: principal directions of a run's points, the loss in their plane, the
path projected on it. The dashed scree beside it is that of a random walk, whose path also lies
mostly in two dimensions (Antognini and Sohl-Dickstein 2018).
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
path = pl.train(land, 1, pl.SGD(lr=0.1, momentum=0.9), epochs=15, batch_size=100)[0]

d1, d2 = pl.pca_directions(path)
a, b = path.project(d1, d2).axes()
pl.plane(land, d1, d2, x=a, y=b, theta=path[-1]).plot(trajectory=path)
pl.pca(path).plot()
