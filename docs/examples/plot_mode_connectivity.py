"""
Two solutions, joined by a curve of low loss
============================================

Garipov et al. (2018), figure 1: the straight line between two independently trained solutions
climbs over a barrier; a Bezier curve with one bend, trained for the purpose, goes around it.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
runs = pl.train(land, 2, pl.Adam(lr=1e-2), epochs=10, batch_size=100)

curve = pl.connect(land, runs[0][-1], runs[1][-1], bends=1, steps=300)
print(f"barrier of the line {curve.line_barrier:.3f}, of the curve {curve.barrier:.3f}")
curve.plane().plot()
