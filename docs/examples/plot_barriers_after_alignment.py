"""
Barriers, before and after the units are aligned
================================================

Ainsworth et al. (2023): two networks may be one, with their hidden units in another order. Align
the second to the first, and look at what is left of the barrier.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
a, b, c = (run[-1] for run in pl.train(land, 3, pl.Adam(lr=1e-3), epochs=20, batch_size=100))

aligned = [pl.align(land, a, other).theta for other in (b, c)]
pl.barriers(land, [a, b, c]).plot()
pl.barriers(land, [a, *aligned]).plot()
