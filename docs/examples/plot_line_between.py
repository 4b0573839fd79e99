"""
The line between two solutions
==============================

Goodfellow et al. (2015), and Frankle et al. (2020) for the barrier: loss and accuracy from one
solution (at 0) to another (at 1), and beyond both. The two come from independent starts.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
a, b = (run[-1] for run in pl.train(land, 2, pl.Adam(lr=3e-3), epochs=20, batch_size=100))

curve = pl.interpolate(land, [a, b], x=(-0.5, 1.5, 101), metrics=("loss", "accuracy"))
curve.plot()
print(f"barrier {curve.barrier:.3f}")
