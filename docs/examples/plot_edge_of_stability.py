"""
The largest eigenvalue settles at the edge of stability
=======================================================

Cohen et al. (2021): under full-batch gradient descent the largest eigenvalue of the Hessian rises
until it reaches 2 / lr, and stays there.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:500] / 16, dtype=torch.float32)
y = torch.nn.functional.one_hot(torch.tensor(labels[:500])).float()
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "mse", (x, y))
path = pl.train(land, 1, pl.SGD(lr=0.5), epochs=3000, batch_size=500)[0]

pl.track(path, land, k=2, every=100, lr=0.5).plot()
