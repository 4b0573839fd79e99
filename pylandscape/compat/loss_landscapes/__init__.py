"""The interface of loss-landscapes 3.0.6: the same names, arguments, types and shapes.

`Loss` runs on the compiled engine where the model can be lowered; any other metric, a user's own
too, is called once per point as in the original. Correct by default; `compat="3.0.6"`, which every
function takes, or `patched(compat={"loss_landscapes": "3.0.6"})` give the original's numbers.

| | original | ours | `compat="3.0.6"` |
|---|---|---|---|
| planes: row i at i, column j at | j + 1 in even rows, j in odd | j, its own comment | original |
| random directions | uniform on [0, 1) | Gaussian | original, same draws |
| a bias, filter normalisation | becomes its own magnitudes | is one filter | original |
| model normalisation | factor changes on the way | one factor | original |
| the directions of `random_plane` | orthogonal, then normalised | orthogonal | original |
| `distance` | divides theta's norm; later multiplies it | divides it | original |
| a filter of theta that is zero | ZeroDivisionError | its part is zero | its part is zero |
| the model, `deepcopy_model=False` | moved, `requires_grad` off | as it was | original |
| `ModelWrapper.parameters()` | gives iterators | gives parameters | gives parameters |
| `LossGradient` | TypeError | gradient, flat | gradient, flat |
| `LossPerturbations` | + U[0, 1)^n, no alpha | + alpha, random unit vector | original |
| model on a GPU | error | directions drawn for it | directions drawn for it |

Seeds: all draws follow from `torch.manual_seed`. The model's own mode (train or eval) counts, as
in the original: with batch norm in train mode, the loss is that of the batch's statistics.
The stale modules of its wheel (contrib, evaluators, common, ...), which do not run, are not here.
`linear_interpolation` and `random_line` sample 1/steps, ..., 1 of the way, as the original.
"""

from .main import linear_interpolation, planar_interpolation, point, random_line, random_plane
from .model_interface.model_wrapper import GeneralModelWrapper, ModelWrapper

__all__ = [
    "GeneralModelWrapper",
    "ModelWrapper",
    "linear_interpolation",
    "planar_interpolation",
    "point",
    "random_line",
    "random_plane",
]
