"""The original's program: an optimiser's path in the plane of its principal directions.

    python -m pylandscape.compat.loss_landscape.plot_trajectory --model package.module:factory \\
        --model_folder folder --prefix model_ --suffix .t7 --max_epoch 300 --save_epoch 1

Reads ``{model_folder}/{prefix}{epoch}{suffix}``; writes the directions, unless ``--dir_file`` names
some, the projection ``{dir_file}_proj_cos.h5`` and its picture.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ...errors import InvalidArgument
from . import model_loader, net_plotter, plot_2D
from ._program import run
from .projection import project_trajectory, setup_PCA_directions


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", default="cifar10", help="accepted")
    add("--model", required=True, metavar="PKG.MOD:FACTORY", help="returns the Module")
    add("--model_folder", default="", help="of the checkpoints")
    add("--dir_type", default="weights", choices=("weights", "states"))
    add("--ignore", default="", choices=("", "biasbn"), help="biasbn: without biases and norms")
    add("--prefix", default="model_", help="of the checkpoints' names")
    add("--suffix", default=".t7", help="of the checkpoints' names")
    add("--start_epoch", default=0, type=int, help="the first checkpoint")
    add("--max_epoch", default=300, type=int, help="the last checkpoint, the plane's origin")
    add("--save_epoch", default=1, type=int, help="epochs between two checkpoints")
    add("--dir_file", default="", help="project on these directions")
    args = parser.parse_args(argv)
    return run("plot_trajectory", lambda: _run(args), show=False)


def _run(args: argparse.Namespace) -> None:
    if args.save_epoch < 1:
        raise InvalidArgument(f"--save_epoch: expected at least 1, got {args.save_epoch}")
    args.model_folder = args.model_folder or "."
    epochs = range(args.start_epoch, args.max_epoch + 1, args.save_epoch)
    files = [f"{args.model_folder}/{args.prefix}{epoch}{args.suffix}" for epoch in epochs]
    missing = [file for file in files if not os.path.exists(file)]
    if missing or not files:
        raise InvalidArgument(
            f"--start_epoch, --max_epoch, --save_epoch: expected a checkpoint for each of "
            f"{len(files)} epochs, got none for {len(missing)}: {', '.join(missing[:3])}"
            + (" ..." if len(missing) > 3 else "")
        )
    last = f"{args.model_folder}/{args.prefix}{args.max_epoch}{args.suffix}"
    net = model_loader.load(args.dataset, args.model, last)
    w, s = net_plotter.get_weights(net), net.state_dict()
    dir_file = args.dir_file or setup_PCA_directions(args, files, w, s)
    proj_file = project_trajectory(
        dir_file, w, s, args.dataset, args.model, files, args.dir_type, "cos"
    )
    print(f"directions {dir_file}")
    print(f"projection {proj_file}")
    plot_2D.plot_trajectory(proj_file, dir_file)


if __name__ == "__main__":
    sys.exit(main())
