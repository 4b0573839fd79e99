"""The flags of plot_surface, with the original's names, and what takes its models' place."""

from __future__ import annotations

import argparse


def parser(description: str | None) -> argparse.ArgumentParser:
    """The parser; ``xmin`` and its like are set from ``--x`` and ``--y`` later."""
    top = argparse.ArgumentParser(
        prog="python -m pylandscape.compat.plot_surface",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("--mpi", "-m", action="store_true", help="accepted: one process computes all")
    add("--cuda", "-c", action="store_true", help="compute on the current CUDA device")
    add("--threads", type=int, help="of torch (default: torch's)")
    add("--ngpu", type=int, default=1, help="accepted: one is used")
    add("--batch_size", type=int, help="cut (x, y) into batches (default: one)")
    add("--debug", action="store_true", help="show tracebacks")

    data = top.add_argument_group("data")
    add = data.add_argument
    add("--data", default="", metavar="PKG.MOD:FACTORY",
        help="returns (x, y), a DataLoader or an iterable of batches")  # fmt: skip
    add("--test_data", default="", metavar="PKG.MOD:FACTORY", help="also test_loss and test_acc")
    add("--dataset", default="cifar10", help="accepted: --data gives the data")
    add("--datapath", default="cifar10/data", help="accepted: --data gives the data")
    add("--trainloader", default="", help="refused: it needs pickle")
    add("--testloader", default="", help="refused: it needs pickle")
    add("--raw_data", action="store_true", help="_rawdata in the file's name")
    add("--data_split", default=1, type=int, help="use one of so many parts of (x, y)")
    add("--split_idx", default=0, type=int, help="which of them")

    model = top.add_argument_group("model")
    add = model.add_argument
    add("--model", required=True, metavar="PKG.MOD:FACTORY", help="returns the Module")
    add("--model_folder", default="", help="accepted")
    add("--model_file", default="", help="its state_dict, read without pickle")
    add("--model_file2", default="", help="x goes from model_file to this one")
    add("--model_file3", default="", help="y goes from model_file to this one")
    add("--loss_name", "-l", default="crossentropy", metavar="NAME|PKG.MOD:FN",
        help="crossentropy (default), mse, nll, bce_with_logits, or a function")  # fmt: skip

    direction = top.add_argument_group("directions and surface")
    add = direction.add_argument
    add("--dir_file", default="", help="an existing direction file")
    add("--dir_type", default="weights", choices=("weights", "states"),
        help="states: running statistics of batch norm too")  # fmt: skip
    add("--x", default="-1:1:51", metavar="MIN:MAX:N", help="default: %(default)s")
    add("--y", default=None, metavar="MIN:MAX:N", help="default: none, a curve")
    for axis in ("x", "y"):
        add(f"--{axis}norm", default="", help="filter, layer, weight, dfilter or dlayer")
        add(f"--{axis}ignore", default="", help="biasbn: tensors of one dimension do not move")
    add("--same_dir", action="store_true", help="the y direction is the x direction")
    add("--idx", default=0, type=int, help="number of a repeated experiment; it seeds the draw")
    add("--surf_file", default="", help="the surface file's name")

    plot = top.add_argument_group("pictures")
    add = plot.add_argument
    add("--plot", action="store_true", help="write .pdf files beside the surface file")
    add("--show", action="store_true", help="show them too")
    add("--proj_file", default="", help="draw this projected trajectory over the contours")
    add("--log", action="store_true", help="logarithmic loss")
    add("--loss_max", default=5, type=float, help="largest loss of a curve's picture")
    add("--vmax", default=10, type=float, help="largest contour")
    add("--vmin", default=0.1, type=float, help="smallest contour")
    add("--vlevel", default=0.5, type=float, help="distance of contours")
    return top
