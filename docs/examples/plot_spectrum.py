"""
The spectrum of the Hessian
===========================

Ghorbani et al. (2019): the density of all eigenvalues by stochastic Lanczos quadrature, with the
standard error over the probes, before and after training. A bulk at zero and a few outliers, about
one for each class.
"""

import torch
from sklearn.datasets import load_digits

import pylandscape as pl

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
land = pl.Landscape(model, "cross_entropy", (x, y))
path = pl.train(land, 1, pl.SGD(lr=0.1, momentum=0.9), epochs=15, batch_size=100)[0]

spectra = {f"epoch {t}": pl.spectrum(land, theta=path[t], probes=5, steps=60) for t in (0, 15)}
pl.plot_spectra(spectra)
print(spectra["epoch 15"].trace, pl.eigenpairs(land, k=10, theta=path[15]), sep="\n")
