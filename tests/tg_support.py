"""A small classifier with files, and loss-landscape's own ways of writing and reading, in short."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
from torch import nn

from pylandscape.compat.loss_landscape import plot_surface

FLAGS = ["--model", "tg_support:model", "--data", "tg_support:data"]
RANDOM = ["--xnorm", "filter", "--xignore", "biasbn", "--ynorm", "filter", "--yignore", "biasbn"]


def model() -> nn.Module:
    """Conv, batch norm, linear; the same numbers every time."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )
    gen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=gen))
        net[1].running_mean.copy_(torch.randn(3, generator=gen))
        net[1].running_var.copy_(0.5 + torch.rand(3, generator=gen))
    return net.eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(6)
    return torch.randn(30, 1, 5, 5, generator=gen), torch.randint(0, 4, (30,), generator=gen)


def checkpoint(path: Path, shift: float = 0.0, seed: int = 7) -> str:
    """A state_dict at a distance from `model`'s."""
    gen = torch.Generator().manual_seed(seed)
    state = model().state_dict()
    for value in state.values():
        if value.is_floating_point():
            value += shift * torch.rand(value.shape, generator=gen)
    torch.save({"state_dict": state, "epoch": 3}, path)
    return str(path)


def run(*words: str) -> int:
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.insert(0, here)
    return plot_surface.main([*FLAGS, *words])


def options(**given) -> SimpleNamespace:
    """The original's arguments, with their defaults."""
    common = {
        "dataset": "cifar10", "model": "tg_support:model", "model_file": "m.pt", "model_file2": "",
        "model_file3": "", "dir_file": "", "dir_type": "weights", "x": "-1:1:51", "y": None,
        "xnorm": "", "ynorm": "", "xignore": "", "yignore": "", "same_dir": False, "idx": 0,
        "surf_file": "", "raw_data": False, "data_split": 1, "split_idx": 0,
        "loss_name": "crossentropy", "cuda": False,
    }  # fmt: skip
    found = SimpleNamespace(**{**common, **given})
    plot_surface.set_axes(found)
    return found


def losses(net: nn.Module, xs, ys, dx, dy) -> np.ndarray:
    """(ny, nx) of the loss, point by point in plain torch, float64."""
    net, (inputs, target) = net.double(), data()
    theta = [p.detach().clone() for p in net.parameters()]
    found = np.empty((len(ys), len(xs)))
    with torch.no_grad():
        for j, y in enumerate(ys):
            for i, x in enumerate(xs):
                for p, t, a, b in zip(net.parameters(), theta, dx, dy, strict=True):
                    p.copy_(t + x * torch.as_tensor(a) + y * torch.as_tensor(b))
                found[j, i] = nn.functional.cross_entropy(net(inputs.double()), target)
    return found


def written_by_the_original(path, x, y, loss, accuracy, done) -> None:
    """A surface file of its program, stopped after `done` points: (nx, ny), filled as [y, x]."""
    columns = {"train_loss": loss, "train_acc": accuracy}
    with h5py.File(path, "w") as f:
        f["dir_file"] = "d.h5"
        f["xcoordinates"], f["ycoordinates"] = x, y
        for name, values in columns.items():
            stored = -np.ones((len(x), len(y)))
            stored.ravel()[:done] = values.ravel()[:done]
            f[name] = stored


def read_as_plot_2d_does(path, name="train_loss"):
    """X, Y, Z as its plots take them."""
    with h5py.File(path, "r") as f:
        x_mesh, y_mesh = np.meshgrid(np.array(f["xcoordinates"][:]), np.array(f["ycoordinates"][:]))
        return x_mesh, y_mesh, np.array(f[name][:])


def negative(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss below 0 everywhere."""
    return nn.functional.cross_entropy(outputs, target) - 1e4
