"""PyHessian 0.1 on this package's engines: ``hessian(model, criterion, data=(x, y), cuda=False)``.

    original (0.1)                              | ours                                | compat="0.1"
    --------------------------------------------+-------------------------------------+-------------
    eigenvalues: deflated power iteration; stops| Lanczos to residuals ||Hv - lv|| <=  | original's
      when the value changes by less than tol,  |   tol |l|, at most maxIter top_n     |
      at most maxIter steps each, silently      |   products; else a warning with the  |
                                                |   residuals                          |
    v / (||v|| + 1e-6): small Hessians low      | v / ||v||                            | original's
    eigenvectors not orthogonal                 | orthonormal                          | original's
    trace: stops when the mean moves by less    | stops when its standard error is     | original's
      than tol, or at once if it is negative    |   below tol of it; the list of       |
                                                |   samples has `.standard_error`      |
    density raises: torch.eig is gone           | works                                | works
    density with iter > n: spurious nodes       | as many nodes as there are           | original's
    density: one sweep of Gram-Schmidt          | as many as rounding asks for         | original's
    density_generate samples the Gaussians:     | means over the bins; the grid holds  | original's
      narrow peaks lose mass, ends are cut      |   all of the outermost peaks         |
    data passed in batches: mean over samples   | loss of the concatenated data        | ours
    loader read again for every product         | read once for a state of the model   | ours
    unused parameters raise                     | have zero rows                       | ours
    model left in eval mode, with `.grad`       | left as it was                       | ours
    cuda=True without CUDA raises               | warns and uses the CPU               | ours
    neither or both of data, dataloader:        | InvalidArgument, which is an         | ours
      AssertionError without words              |   AssertionError                     |

Random vectors come from torch's global generator in the original's order, so that after the same
``torch.manual_seed`` the samples of `trace` and the probes of `density` are the original's.
`hessian(...).landscape` is the Landscape behind it.
"""

from .density_plot import density_generate, get_esd_plot
from .hessian import hessian
from .utils import (
    get_params_grad,
    group_add,
    group_product,
    hessian_vector_product,
    normalization,
    orthnormal,
)

__all__ = [
    "density_generate",
    "get_esd_plot",
    "get_params_grad",
    "group_add",
    "group_product",
    "hessian",
    "hessian_vector_product",
    "normalization",
    "orthnormal",
]
