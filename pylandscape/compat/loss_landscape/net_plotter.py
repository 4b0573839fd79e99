"""Weights of a network and directions for them: lists of tensors, one per parameter.

"weights" are those of ``net.parameters()``, "states" of ``net.state_dict()``, both in that order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os.path import exists
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidArgument, LayoutMismatch, ResumeMismatch
from ...files.hdf5 import as_path, open_hdf5
from ...runs.request import differences, listing
from .._options import version_of
from . import model_loader
from ._files import replacing
from ._names import name_direction_file
from ._normalize import check_norm, normalize_all, normalize_direction
from .h5_util import read_list, write_list

__all__ = [
    "create_random_direction",
    "create_target_direction",
    "get_diff_states",
    "get_diff_weights",
    "get_random_states",
    "get_random_weights",
    "get_weights",
    "ignore_biasbn",
    "load_directions",
    "name_direction_file",
    "normalize_direction",
    "normalize_directions_for_states",
    "normalize_directions_for_weights",
    "set_states",
    "set_weights",
    "setup_direction",
]

NAME = "loss_landscape"
KNOWN = ("2020",)  # of its last change
TYPES = ("weights", "states")
REQUEST = "request"  # attribute of our direction files: what they were made for

List = Sequence[Any]  # tensors or arrays, one per parameter
States = Mapping[str, Tensor]


def get_weights(net: nn.Module) -> list[Tensor]:
    """The data of ``net.parameters()``: the tensors themselves, no copies."""
    return [p.data for p in net.parameters()]


def set_weights(
    net: nn.Module, weights: List, directions: Sequence[List] | None = None, step: Any = None
) -> None:
    """Give the network ``weights``, or ``weights + step[0] directions[0] [+ step[1] ...]``.

    Args:
        weights: as of `get_weights`. They are not changed: with directions, the parameters get
            tensors of their own.
        directions: one or two lists of tensors or arrays.
        step: a number for one direction, a pair for two.

    Raises:
        InvalidArgument: directions without a step, or not as many steps; LayoutMismatch for lists
            of other lengths or shapes.
    """
    parameters = list(net.parameters())
    if directions is None:
        for p, w in _pairs(parameters, weights, "weights"):
            p.data.copy_(w)
        return
    changes = _changes(directions, step)
    _pairs(changes, weights, "directions")
    for (p, w), change in zip(_pairs(parameters, weights, "weights"), changes, strict=True):
        p.data = w + _like(change, w)


def set_states(
    net: nn.Module, states: States, directions: Sequence[List] | None = None, step: Any = None
) -> None:
    """As `set_weights`, of a state_dict, which is not changed."""
    if directions is None:
        net.load_state_dict(dict(states))
        return
    pairs = _pairs(_changes(directions, step), list(states.values()), "directions")
    moved = {k: v + _like(d, v) for k, (d, v) in zip(states, pairs, strict=True)}
    net.load_state_dict(moved)


def get_random_weights(weights: Iterable[Tensor]) -> list[Tensor]:
    """Standard normals of the shapes of ``weights``, of torch's global generator."""
    return [torch.randn(w.size()) for w in weights]


def get_random_states(states: States) -> list[Tensor]:
    """Standard normals of the shapes of a state_dict's tensors."""
    return get_random_weights(states.values())


def get_diff_weights(weights: List, weights2: List) -> list[Tensor]:
    """``weights2 - weights``."""
    return [w2 - w for w, w2 in _pairs(weights, weights2, "weights2")]


def get_diff_states(states: States, states2: States) -> list[Tensor]:
    """``states2 - states``, by name."""
    if list(states) != list(states2):
        other = sorted(set(states) ^ set(states2))
        raise LayoutMismatch(f"states2: expected the names of states, got others: {other[:5]}")
    return get_diff_weights(list(states.values()), list(states2.values()))


def normalize_directions_for_weights(
    direction: Sequence[Tensor],
    weights: List,
    norm: str = "filter",
    ignore: str = "biasbn",
    *,
    compat: str | None = None,
) -> None:
    """`normalize_direction` for every tensor, in place; "biasbn" sets those of one dimension to 0.

    Without it they are normalised as the others are; with ``compat`` they become the weights.
    """
    _pairs(direction, weights, "direction")
    normalize_all(direction, weights, norm, ignore, version_of(NAME, compat, KNOWN) is not None)


def normalize_directions_for_states(
    direction: Sequence[Tensor],
    states: States,
    norm: str = "filter",
    ignore: str = "ignore",
    *,
    compat: str | None = None,
) -> None:
    """As `normalize_directions_for_weights`, of a state_dict."""
    values = list(states.values())
    normalize_directions_for_weights(direction, values, norm, ignore, compat=compat)


def ignore_biasbn(directions: Iterable[Tensor]) -> None:
    """Set the tensors of at most one dimension to 0, in place."""
    for d in directions:
        if d.dim() <= 1:
            d.zero_()


def create_target_direction(
    net: nn.Module, net2: nn.Module, dir_type: str = "states"
) -> list[Tensor]:
    """From ``net`` to ``net2``, a list in the order of weights or states."""
    _check_type(dir_type)
    if dir_type == "weights":
        return get_diff_weights(get_weights(net), get_weights(net2))
    return get_diff_states(net.state_dict(), net2.state_dict())


def create_random_direction(
    net: nn.Module,
    dir_type: str = "weights",
    ignore: str = "biasbn",
    norm: str = "filter",
    *,
    compat: str | None = None,
) -> list[Tensor]:
    """A Gaussian direction, normalised; of torch's global generator, as the original draws it.

    Args:
        dir_type: "weights" or "states". Buffers stay where they are; with ``compat`` and without
            "biasbn" they move along themselves.
        ignore: "biasbn": tensors of at most one dimension get 0; "": they take part.
        norm: as in `normalize_direction`.

    Returns:
        Tensors of the shapes, dtypes and device of the weights or states.

    Raises:
        InvalidArgument: another ``dir_type`` or ``norm``.
    """
    _check_type(dir_type)
    check_norm(norm)
    as_original = version_of(NAME, compat, KNOWN) is not None
    named: States = dict(net.state_dict())
    if dir_type == "weights":
        named = {name: p.data for name, p in net.named_parameters()}
    drawn = get_random_states(named)
    direction = [d.to(w) if w.is_floating_point() else d for d, w in zip(drawn, named.values())]  # noqa: B905
    normalize_all(direction, named.values(), norm, ignore, as_original)
    if dir_type == "states" and not as_original:
        buffers = {name for name, _ in net.named_buffers(remove_duplicate=False)}
        for name, d in zip(named, direction, strict=True):
            if name in buffers:
                d.zero_()
    return direction


def setup_direction(args: Any, dir_file: str, net: nn.Module) -> None:
    """Write the direction file, or check the one that is there.

    Raises:
        FileFormatError: the file is no direction file (it is left alone).
        ResumeMismatch: it has other directions than asked for, or they were made for a network of
            other weights.
        LayoutMismatch: its directions are of another network.
    """
    request = _request(args, net)
    if exists(dir_file):
        _check_directions(args, dir_file, net, request)
        print(f"{dir_file} is already set up")
        return
    made = {"xdirection": _direction(args, net, args.model_file2, args.xignore, args.xnorm)}
    if args.y and args.same_dir:
        made["ydirection"] = made["xdirection"]
    elif args.y:
        made["ydirection"] = _direction(args, net, args.model_file3, args.yignore, args.ynorm)
    with replacing(as_path(dir_file, "dir_file"), fresh=True) as f:
        for name, direction in made.items():
            write_list(f, name, direction)
        f.attrs[REQUEST] = json.dumps(request)
    print(f"direction file created: {dir_file}")


def load_directions(dir_file: str) -> list[list[np.ndarray]]:
    """[xdirection] or [xdirection, ydirection] of a direction file, as arrays in memory.

    Raises:
        FileNotFoundError, FileFormatError.
    """
    with open_hdf5(as_path(dir_file, "dir_file"), "dir_file") as f:
        names = ["xdirection", *(["ydirection"] if "ydirection" in f else [])]
        return [read_list(f, name) for name in names]


def _direction(
    args: Any, net: nn.Module, target: str | None, ignore: str, norm: str
) -> list[Tensor]:
    if target:
        net2 = model_loader.load(args.dataset, args.model, target)
        return create_target_direction(net, net2, args.dir_type)
    return create_random_direction(net, args.dir_type, ignore, norm)


def _request(args: Any, net: nn.Module) -> dict[str, Any]:
    """What decides the directions, JSON-able; the files' names hold the rest."""
    from ...arrays import digest
    from ...theta.layout import ParameterLayout

    layout = ParameterLayout.of(net)
    theta = layout.flatten(dict(net.named_parameters()), torch.float64, "cpu")
    return {"layout": layout.digest, "theta": digest(theta), "dir_type": args.dir_type}


def _check_directions(args: Any, dir_file: str, net: nn.Module, request: dict[str, Any]) -> None:
    with open_hdf5(as_path(dir_file, "dir_file"), "dir_file") as f:
        found = json.loads(str(f.attrs[REQUEST])) if REQUEST in f.attrs else None
    directions = load_directions(dir_file)
    if len(directions) != (2 if args.y else 1) and (args.y or not args.dir_file):
        raise ResumeMismatch(
            f"dir_file: expected {2 if args.y else 1} directions in {dir_file}, got "
            f"{len(directions)}; remove it or use another"
        )
    states = list(net.state_dict().values())
    for direction in directions:
        _pairs(direction, get_weights(net) if args.dir_type == "weights" else states, "dir_file")
    rows = [] if found is None or args.dir_file else differences(found, request)
    if rows:
        raise ResumeMismatch(
            f"dir_file: {dir_file} was made for another network; remove it or use another name. "
            f"What differs:{listing(rows)}"
        )


def _pairs(first: List, second: List, name: str) -> list[tuple[Any, Any]]:
    """Pairs of tensors of equal shapes, or LayoutMismatch."""
    shapes = [[tuple(part.shape) for part in parts] for parts in (first, second)]
    if shapes[0] != shapes[1]:
        at = next((i for i, (a, b) in enumerate(zip(*shapes)) if a != b), None)  # noqa: B905
        what = f"{len(shapes[0])} and {len(shapes[1])} tensors"
        if at is not None:
            what = f"shapes {shapes[0][at]} and {shapes[1][at]} of tensor {at}"
        raise LayoutMismatch(f"{name}: expected tensors of the same shapes, got {what}")
    return list(zip(first, second, strict=True))


def _changes(directions: Sequence[List], step: Any) -> list[Any]:
    """sum_k step[k] directions[k], tensor by tensor."""
    if step is None:
        raise InvalidArgument("step: expected a number or a pair with directions, got None")
    steps = np.atleast_1d(np.asarray(step, dtype=np.float64)).tolist()
    if len(steps) != len(directions):
        raise InvalidArgument(f"step: expected {len(directions)} numbers, got {len(steps)}")
    first, *rest = [[d * c for d in direction] for c, direction in zip(steps, directions)]  # noqa: B905
    if rest:
        return [a + b for a, b in _pairs(first, rest[0], "directions")]
    return first


def _like(change: Any, tensor: Tensor) -> Tensor:
    return torch.as_tensor(change).detach().to(tensor)


def _check_type(dir_type: str) -> None:
    if dir_type not in TYPES:
        raise InvalidArgument(f"dir_type: expected 'weights' or 'states', got {dir_type!r}")
