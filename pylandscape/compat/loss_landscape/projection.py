"""Directions and weights as vectors; an optimiser's path in the plane of two directions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidArgument, LayoutMismatch
from ...files.hdf5 import array, as_path, open_hdf5
from . import model_loader, net_plotter
from ._files import replacing
from .h5_util import write_list

METHODS = ("cos", "lstsq")
FARNESS = "off_plane_distance"  # attribute of proj_xcoord


def tensorlist_to_tensor(weights: Iterable[Any]) -> Tensor:
    """(n,) float64 of a list of tensors or arrays; those of no dimension are left out."""
    parts = [torch.as_tensor(part).detach().double().cpu() for part in weights]
    return torch.cat([part.reshape(-1) for part in parts if part.dim() > 0])


nplist_to_tensor = tensorlist_to_tensor


def npvec_to_tensorlist(direction: Any, params: Any) -> list[Tensor]:
    """A vector cut into tensors of the shapes and dtypes of a list of tensors, or of a state_dict.

    Raises:
        LayoutMismatch: another length.
    """
    like = list(params.values()) if isinstance(params, Mapping) else list(params)
    vector = torch.as_tensor(np.asarray(direction))
    counted = [w.numel() if w.dim() > 0 else 0 for w in like]
    if vector.shape != (sum(counted),):
        raise LayoutMismatch(
            f"direction: expected shape ({sum(counted)},), got {tuple(vector.shape)}"
        )
    parts = vector.split(counted)
    return [
        part.reshape(w.shape).to(w) if w.dim() > 0 else torch.zeros_like(w)
        for part, w in zip(parts, like, strict=True)
    ]


def cal_angle(vec1: Any, vec2: Any) -> Any:
    """The cosine of the angle between two vectors; NaN if one is zero."""
    a, b = (torch.as_tensor(v).double() for v in (vec1, vec2))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else float("nan")


def project_1D(w: Tensor, d: Tensor) -> float:
    """The length of w along d: w . d / |d|."""
    _same(w, d)
    return float(w.double() @ d.double() / d.double().norm())


def project_2D(d: Tensor, dx: Tensor, dy: Tensor, proj_method: str) -> tuple[float, float]:
    """Coordinates of d: "cos": its lengths along dx and dy; "lstsq": a, b of d ~ a dx + b dy."""
    _check_method(proj_method)
    if proj_method == "cos":
        return project_1D(d, dx), project_1D(d, dy)
    _same(d, dx)
    _same(d, dy)
    basis = torch.stack([dx.double(), dy.double()], dim=1)
    x, y = torch.linalg.lstsq(basis, d.double()[:, None]).solution[:, 0].tolist()
    return x, y


def project_trajectory(
    dir_file: str,
    w: Sequence[Tensor],
    s: Mapping[str, Tensor],
    dataset: str,
    model_name: str,
    model_files: Sequence[str],
    dir_type: str = "weights",
    proj_method: str = "cos",
) -> str:
    """Write ``{dir_file}_proj_{proj_method}.h5``: the models' coordinates; returns its name.

    Args:
        w, s: weights and state_dict of the last model, the plane's origin.
        model_name: "package.module:factory".
        model_files: checkpoints, in the order of the path.
        proj_method: as in `project_2D`.

    The file has ``proj_xcoord`` and ``proj_ycoord`` (T,) float64; an attribute of the first holds
    how far the models lie from the plane. One that is there is kept.
    """
    _check_method(proj_method)
    proj_file = f"{dir_file}_proj_{proj_method}.h5"
    if os.path.exists(proj_file):
        print(f"{proj_file} is there: delete it to project again")
        return proj_file
    directions = net_plotter.load_directions(dir_file)
    if len(directions) != 2:
        raise InvalidArgument(f"dir_file: expected two directions in {dir_file}, got one")
    dx, dy = (nplist_to_tensor(direction) for direction in directions)
    found = []
    for _, d in _steps(dataset, model_name, model_files, dir_type, w, s):
        a, b = project_2D(d, dx, dy, "lstsq")
        away = float((d - a * dx - b * dy).norm())
        found.append((*project_2D(d, dx, dy, proj_method), away))
    columns = np.array(found, dtype=np.float64).reshape(-1, 3).T
    with replacing(as_path(proj_file, "proj_file"), fresh=True) as f:
        f["proj_xcoord"], f["proj_ycoord"] = columns[0], columns[1]
        f["proj_xcoord"].attrs[FARNESS] = columns[2]
    return proj_file


def setup_PCA_directions(
    args: Any, model_files: Sequence[str], w: Sequence[Tensor], s: Mapping[str, Tensor]
) -> str:
    """Write the two principal directions of the path of ``model_files``; returns the file's name.

    ``{model_folder}/PCA_{dir_type}[_ignore=..]_save_epoch=N/directions.h5``: two unit directions,
    ``explained_variance_ratio_``, ``singular_values_``, ``explained_variance_`` (2,) float64, of
    the models minus their mean. One that is there is kept.

    Raises:
        InvalidArgument: fewer than three models.
    """
    folder = f"{args.model_folder}/PCA_{args.dir_type}"
    folder += f"_ignore={args.ignore}" if args.ignore else ""
    folder += f"_save_epoch={args.save_epoch}"
    dir_file = f"{folder}/directions.h5"
    if os.path.exists(dir_file):
        with open_hdf5(as_path(dir_file, "dir_file"), "dir_file") as f:
            if "explained_variance_" in f:
                return dir_file
    if len(model_files) < 3:
        raise InvalidArgument(f"model_files: expected at least 3 models, got {len(model_files)}")
    rows = []
    for parts, d in _steps(args.dataset, args.model, model_files, args.dir_type, w, s):
        if args.ignore == "biasbn":
            net_plotter.ignore_biasbn(parts)
            d = tensorlist_to_tensor(parts)
        rows.append(d)
    matrix = torch.stack(rows)
    _, singular, axes = torch.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    variance = (singular**2 / (len(rows) - 1)).numpy()
    like = w if args.dir_type == "weights" else s
    os.makedirs(folder, exist_ok=True)
    with replacing(as_path(dir_file, "dir_file"), fresh=True) as f:
        for name, axis in zip(("xdirection", "ydirection"), axes[:2], strict=True):
            sign = axis[axis.abs().argmax()].sign()
            write_list(f, name, npvec_to_tensorlist(sign * axis, like))
        f["explained_variance_ratio_"] = variance[:2] / variance.sum()
        f["singular_values_"] = singular[:2].numpy()
        f["explained_variance_"] = variance[:2]
    return dir_file


def coefficients(proj_file: str, dir_file: str) -> np.ndarray:
    """(T, 2): the path of a projection file in units of the directions, as a surface's axes are.

    "cos" files hold lengths: of directions that are not of length 1, or not orthogonal, another
    thing.
    """
    with open_hdf5(as_path(proj_file, "proj_file"), "proj_file") as f:
        lengths = np.stack([array(f, "proj_xcoord"), array(f, "proj_ycoord")])
    if proj_file.endswith("_proj_lstsq.h5"):
        return lengths.T
    dx, dy = (nplist_to_tensor(d).numpy() for d in net_plotter.load_directions(dir_file))
    gram = np.array([[dx @ dx, dx @ dy], [dx @ dy, dy @ dy]])
    norms = np.sqrt(np.diag(gram))
    return np.asarray(np.linalg.lstsq(gram, lengths * norms[:, None], rcond=None)[0].T)


def explained(dir_file: str) -> tuple[float, float] | None:
    """The shares of variance of principal directions, if these are."""
    with open_hdf5(as_path(dir_file, "dir_file"), "dir_file") as f:
        if not isinstance(f.get("explained_variance_ratio_"), h5py.Dataset):
            return None
        first, second = array(f, "explained_variance_ratio_")[:2].tolist()
        return first, second


def _steps(
    dataset: str,
    model_name: str,
    model_files: Sequence[str],
    dir_type: str,
    w: Sequence[Tensor],
    s: Mapping[str, Tensor],
) -> Iterable[tuple[list[Tensor], Tensor]]:
    """Every model minus the last, as a list and as a vector."""
    difference: dict[str, Callable[[Any], list[Tensor]]] = {
        "weights": lambda net: net_plotter.get_diff_weights(w, net_plotter.get_weights(net)),
        "states": lambda net: net_plotter.get_diff_states(s, net.state_dict()),
    }
    if dir_type not in difference:
        raise InvalidArgument(f"dir_type: expected 'weights' or 'states', got {dir_type!r}")
    for model_file in model_files:
        parts = difference[dir_type](model_loader.load(dataset, model_name, model_file))
        yield parts, tensorlist_to_tensor(parts)


def _check_method(proj_method: str) -> None:
    if proj_method not in METHODS:
        raise InvalidArgument(f"proj_method: expected 'cos' or 'lstsq', got {proj_method!r}")


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise LayoutMismatch(
            f"d: expected vectors of one length, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
