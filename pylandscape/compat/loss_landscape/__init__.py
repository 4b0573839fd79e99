"""Li et al.'s loss-landscape (github.com/tomgoldstein/loss-landscape): its modules and its files.

`net_plotter`, `evaluation`, `projection`, `h5_util`, `plot_1D`, `plot_2D`, `plot_trajectory`,
`h52vtp` and `plot_surface` with the same names, arguments, defaults and file names, for any model:
where the original has a model's name, a factory "package.module:name" stands. Surface, direction
and projection files are the original's in layout, both ways. Correct by default;
`patched(compat={"loss_landscape": "2020"})`, or `compat="2020"` where a function takes it, give the
original's directions.

| | original | ours | `compat="2020"` |
|---|---|---|---|
| without biasbn: tensors of one dimension | move along themselves | one filter | original |
| the same, running statistics, counters | move along themselves | stay | original |
| `--idx` | the same draw for each | its own draw | original |
| norm dfilter | AttributeError | filters of norm 1 | ours |
| a layer that is zero | NaN | zero | ours |
| grids with nx != ny | scrambled, read by nothing | [y, x] | ours |
| a 0 bound of `--y` | refused | works | ours |
| resume: values <= 0 | computed again | kept; unfilled is -1 | ours |
| resume: other axes, weights, data | not noticed | ResumeMismatch | ours |
| killed while writing | the file may be damaged | old or new, whole | ours |
| MPI ranks | share the points | the first computes all | ours |
| `load_directions` | open datasets, read anew for every point | arrays | ours |
| `eval_loss`: class weights, ignored targets | mean of batch means | of all data | ours |
| `eval_loss`: MSELoss | 10 classes only | as many as outputs, or plain | ours |
| `eval_loss`: the network's mode | left in eval | as it was | ours |
| `--model_file3` | fails | works ("_" for "/" in the name) | ours |
| files without a folder, in names | lose a letter | one folder | ours |
| trajectory over contours | lengths over coefficients | coefficients | ours |
| `--proj_file` with `--vmin` ... | ignored | used | ours |
| states: a negative variance | a loss with epsilon added, or NaN | NaN | ours |
| .vtp of nx != ny, of NaN | scrambled, unreadable | right, points left out | ours |
| checkpoints, `--trainloader` | pickle | tensors only, refused | ours |
| min_eig, max_eig (`plot_hessian_eigen`) | written | read; `pl.convexity` | ours |

Directions are drawn from torch's global generator as in the original: the same seed gives the same
numbers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MODULES = (
    "evaluation",
    "h52vtp",
    "h5_util",
    "model_loader",
    "net_plotter",
    "plot_1D",
    "plot_2D",
    "plot_surface",
    "plot_trajectory",
    "projection",
)

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    """Modules are imported when they are asked for."""
    if name in MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
