"""The original's program: directions, surface, pictures, for any model and data.

    python -m pylandscape.compat.plot_surface --x=-1:1:51 --y=-1:1:51 --xnorm filter \\
        --xignore biasbn --ynorm filter --yignore biasbn --plot \\
        --model package.module:factory --model_file model.pt --data package.module:factory

Its flags, defaults and file names. The same command goes on where a run stopped, also one of the
original's, and computes nothing that is there.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...cli.inputs import call, named, parse_axis
from ...errors import InvalidArgument, PylandscapeError
from ...runs.chunks import evaluate_in_chunks
from ...surfaces.evaluation import request_for
from ...theta import running_statistics
from ...theta.directions import as_steps
from .._options import version_of
from .._report import report
from . import model_loader, net_plotter
from ._crunch import Record, setup_surface_file
from ._flags import parser
from ._landscape import Asked
from ._names import name_direction_file, name_surface_file
from ._program import BAD_INPUT
from .projection import cal_angle, nplist_to_tensor

__all__ = ["crunch", "main", "name_surface_file", "setup_surface_file"]

SEED = 123  # the original's
INTERRUPTED = 130
LOSSES = {"crossentropy": "cross_entropy"}
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    from ...cli.app import joined

    args = parser(__doc__).parse_args(joined(list(sys.argv[1:] if argv is None else argv)))
    try:
        with torch.random.fork_rng(devices=[]):
            _run(args)
    except KeyboardInterrupt:
        print("interrupted; what is done is kept: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except (PylandscapeError, OSError) as error:
        if args.debug:
            raise
        print(f"plot_surface: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return 0


def crunch(
    surf_file: str,
    net: nn.Module,
    w: Sequence[torch.Tensor],
    s: Any,
    d: Sequence[Sequence[Any]],
    dataloader: Any,
    loss_key: str,
    acc_key: str,
    comm: Any = None,
    rank: int = 0,
    args: Any = None,
) -> None:
    """Fill what the surface file does not hold yet of the loss and the accuracy (percent).

    Args:
        net: its own weights do not count; left as it is.
        w, s: the centre's weights and state_dict; ``args.dir_type`` says which of them moves.
        d: one or two directions.
        dataloader: a loader, batches, or (x, y).
        comm, rank: not used: one process computes all.
        args: with ``dir_type``, ``loss_name`` and ``cuda``.

    Raises:
        ResumeMismatch: the file holds values of another request, or a point that it holds comes
            out differently now.
    """
    states = args.dir_type == "states"
    loss = LOSSES.get(args.loss_name) or named(args.loss_name, "--loss_name")
    device = "cuda" if getattr(args, "cuda", False) else None
    asked = Asked(net, loss, dataloader, states, device)
    land = asked.land
    directions = [asked.direction(parts, f"d[{i}]") for i, parts in enumerate(d)]
    vectors, infos = as_steps(land, directions)
    base = running_statistics.point(land, asked.point(s if states else w), "s" if states else "w")
    request = request_for(
        land, "line" if len(d) == 1 else "plane", {}, asked.metrics, base, vectors, infos
    )
    record = Record(surf_file, (loss_key, acc_key), request)
    if record.points.shape[1] != len(d):
        raise InvalidArgument(
            f"d: expected {record.points.shape[1]} directions for {surf_file}, got {len(d)}"
        )
    todo = int((~record.done).sum())
    print(f"engine     {land.engine_report()}", flush=True)
    started = time.perf_counter()
    try:
        evaluate_in_chunks(
            record.points,
            ("loss", "accuracy"),
            lambda: land.prepare(vectors, metrics=asked.metrics, theta=base),
            journal=record,
            label=loss_key,
            exact=record.exact and land.device.type == "cpu",
        )
    finally:
        left = int((~record.done).sum())
        if left < todo:
            record.save()
            reason = land.engine_report().reason
            report.add("loss_landscape.plot_surface", land.engine, todo - left, reason)
    seconds = time.perf_counter() - started
    there = len(record.done) - todo
    print(f"{loss_key:<10} {todo} points in {seconds:.2f} s; {there} were there")


def _run(args: argparse.Namespace) -> None:
    if _other_rank(args):
        return
    if not args.show:
        os.environ.setdefault("MPLBACKEND", "Agg")
    if args.threads is not None:
        if args.threads < 1:
            raise InvalidArgument(f"--threads: expected at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    set_axes(args)
    if not args.data:
        raise InvalidArgument(
            "--data: expected package.module:factory, which returns (x, y), a DataLoader or "
            f"batches (--dataset {args.dataset} is not built in), got nothing"
        )
    if args.trainloader or args.testloader:
        raise InvalidArgument("--trainloader, --testloader: they need pickle; use --data")
    original = version_of(net_plotter.NAME, None, net_plotter.KNOWN) is not None
    # The original draws the same direction for every --idx.
    torch.manual_seed(SEED if original else SEED + args.idx)
    net = model_loader.load(args.dataset, args.model, args.model_file)
    w, s = net_plotter.get_weights(net), copy.deepcopy(net.state_dict())
    dir_file = name_direction_file(args)
    net_plotter.setup_direction(args, dir_file, net)
    surf_file = name_surface_file(args, dir_file)
    setup_surface_file(args, surf_file, dir_file)
    d = net_plotter.load_directions(dir_file)[: 2 if args.y else 1]
    if len(d) == 2:
        similarity = cal_angle(*(nplist_to_tensor(parts) for parts in d))
        print(f"cosine similarity between x-axis and y-axis: {similarity:f}")
    sources = ((args.data, "--data", "train"), (args.test_data, "--test_data", "test"))
    for source, option, kind in sources:
        if source:
            torch.manual_seed(SEED)  # a loader that shuffles reads in the same order every time
            data = _portion(call(source, option), args)
            crunch(surf_file, net, w, s, d, data, f"{kind}_loss", f"{kind}_acc", None, 0, args)
    print(f"surface    {surf_file}")
    if args.plot:
        _plot(args, surf_file, dir_file)


def set_axes(args: Any) -> None:
    """Set ``xmin``, ``xmax``, ``xnum`` and, of ``--y``, their like; falling axes are allowed.

    Raises:
        InvalidArgument: not min:max:n.
    """
    for name in ("x", "y"):
        found: tuple[Any, ...] = (None, None, None)
        text = getattr(args, name)
        if text:
            parts = text.split(":")
            try:
                found = parse_axis(text, f"--{name}")
            except InvalidArgument:
                low, high, count = parse_axis(":".join([*parts[1::-1], *parts[2:]]), f"--{name}")
                found = (high, low, count)
        for part, value in zip(("min", "max", "num"), found, strict=True):
            setattr(args, name + part, value)


def _other_rank(args: argparse.Namespace) -> bool:
    """Whether this is one of several processes of mpiexec, and not the first."""
    if args.ngpu > 1:
        print("--ngpu: one GPU is used")
    if not args.mpi:
        return False
    ranks = [os.environ[name] for name in RANKS if name in os.environ]
    other = bool(ranks) and ranks[0] != "0"
    print("--mpi: one process computes all" + ("; this one has nothing to do" if other else ""))
    return other


def _portion(data: Any, args: argparse.Namespace) -> Any:
    """The split asked for, in batches of the size asked for; of a pair (x, y) only."""
    pair = isinstance(data, tuple | list) and len(data) == 2
    pair = pair and all(isinstance(part, torch.Tensor | np.ndarray) for part in data)
    if not pair:
        if args.data_split > 1:
            raise InvalidArgument(
                f"--data_split: expected {args.data} to return (x, y), got {type(data).__name__}"
            )
        return data
    size = len(data[0])
    if not 0 <= args.split_idx < args.data_split:
        raise InvalidArgument(
            f"--split_idx: expected 0 .. {args.data_split - 1}, got {args.split_idx}"
        )
    share = size // args.data_split
    x, y = (part[share * args.split_idx : share * (args.split_idx + 1)] for part in data)
    if args.batch_size is None:
        return x, y
    if args.batch_size < 1:
        raise InvalidArgument(f"--batch_size: expected at least 1, got {args.batch_size}")
    starts = range(0, len(x), args.batch_size)
    return [(x[i : i + args.batch_size], y[i : i + args.batch_size]) for i in starts]


def _plot(args: argparse.Namespace, surf_file: str, dir_file: str) -> None:
    from . import plot_1D, plot_2D

    if args.y and args.proj_file:
        plot_2D.plot_contour_trajectory(
            surf_file, dir_file, args.proj_file, "train_loss",
            args.vmin, args.vmax, args.vlevel, args.show,
        )  # fmt: skip
    elif args.y:
        plot_2D.plot_2d_contour(
            surf_file, "train_loss", args.vmin, args.vmax, args.vlevel, args.show, log=args.log
        )
    else:
        plot_1D.plot_1d_loss_err(
            surf_file, args.xmin, args.xmax, args.loss_max, args.log, args.show
        )


if __name__ == "__main__":
    sys.exit(main())
