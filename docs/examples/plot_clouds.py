"""
Loss-gradient clouds
====================

Bosman et al. (2020): walks down the gradient from random starts; each dot is a point, by its loss
and the norm of its gradient, coloured by its bumpiness, the mean curvature over all directions.
"""

import torch
from sklearn.datasets import load_iris

import pylandscape as pl

inputs, labels = load_iris(return_X_y=True)
x, y = torch.tensor(inputs, dtype=torch.float64), torch.tensor(labels)
x = (x - x.mean(0)) / x.std(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))
land = pl.Landscape(model.double(), "cross_entropy", (x, y))

walks = pl.gradient_walk(land, walks=50, steps=100, seed=0)
pl.loss_gradient_cloud(land, walks, "bumpiness").plot()
