"""hessian-eigenthings on this package's engines: 1.0's operators and 0.0.2's one function.

    original (1.0.0a5)                          | ours                                | 1.0.0a5
    --------------------------------------------+-------------------------------------+-----------
    mean over batches, whatever their sizes     | loss of the concatenated data       | original's
    lanczos: max_iter = min(2k, n - 1), hardly  | restarts until residuals <= tol |l|, | original's
      anything converges                        |   or max_iter products              |
    lanczos: k = n raises                       | works                               | original's
    lanczos: reorthogonalised up to 50 steps,   | always                              | original's
      ghost eigenvalues beyond                  |                                     |
    power iteration: its own steps              | Lanczos, same arguments and results | original's
    spectral_density samples the Gaussians      | means over the grid's cells         | original's
    lanczos_steps > n raises                    | n steps                             | original's
    trace, hutchinson, hutch_plus_plus          | the same samples for the same seed  | ours
    method="finite_difference"                  | exact products                      | original's
    full_dataset=False: another batch for every | the first batch                     | original's
      product                                   |                                     |
    loader read again for every product         | read once for a state of the model  | ours
    microbatch_size                             | not needed; checked as there        | ours
    unused parameters raise                     | have zero rows                      | ours
    dropout in train mode: another matrix for   | off; batch norm in train mode uses  | ours
      every product                             |   each batch's statistics, as there |
    backend=                                    | None or SingleDeviceBackend only    | ours
    DDPHessianOperator: mean over the ranks     | mean over their samples             | original's

    original (0.0.2)                            | ours                                | 0.0.2
    --------------------------------------------+-------------------------------------+-----------
    compute_hessian_eigenthings: 20 power steps | converged (tol 1e-4 or tol=), or as | original
      or ARPACK iterations, whatever they give  |   many products as those steps make,|   powers
                                                |   with a warning naming residuals   |
    use_gpu=True without CUDA raises            | warns and uses the CPU              | ours

The last column is what ``compat="1.0.0a5"`` or ``"0.0.2"`` gives. `compat` is an argument of the
operators, for what concerns the matrix, and of the algorithms. The compiled engine runs
`supervised_loss`, `supervised_forward` with `supervised_loss_of_output`, and
`supervised_per_sample_loss` of the losses that it knows; other functions run on torch.
Import path: ``from pylandscape.compat import hessian_eigenthings``.
"""

from ._classic import compute_hessian_eigenthings
from .algorithms import (
    EigenResult,
    LanczosTridiag,
    SpectralDensityResult,
    TraceResult,
    deflated_power_iteration,
    hutch_plus_plus,
    hutchinson,
    lanczos,
    lanczos_tridiagonal,
    power_iteration_one,
    spectral_density,
    trace,
)
from .loss_fns import (
    hf_lm_forward,
    hf_lm_loss,
    hf_lm_loss_of_output,
    hf_seq2seq_loss,
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
    supervised_per_sample_loss,
    tlens_forward,
    tlens_loss,
    tlens_loss_of_output,
)
from .operators import (
    CurvatureOperator,
    DDPHessianOperator,
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    LambdaOperator,
)
from .param_utils import (
    ParamFilter,
    match_names,
    match_regex,
    params_to_vector,
    select_parameters,
    vector_to_params,
)

__version__ = "1.0.0a5"  # whose interface this is

__all__ = [
    "CurvatureOperator",
    "DDPHessianOperator",
    "EigenResult",
    "EmpiricalFisherOperator",
    "GGNOperator",
    "HessianOperator",
    "LambdaOperator",
    "LanczosTridiag",
    "ParamFilter",
    "SpectralDensityResult",
    "TraceResult",
    "__version__",
    "compute_hessian_eigenthings",
    "deflated_power_iteration",
    "hf_lm_forward",
    "hf_lm_loss",
    "hf_lm_loss_of_output",
    "hf_seq2seq_loss",
    "hutch_plus_plus",
    "hutchinson",
    "lanczos",
    "lanczos_tridiagonal",
    "match_names",
    "match_regex",
    "params_to_vector",
    "power_iteration_one",
    "select_parameters",
    "spectral_density",
    "supervised_forward",
    "supervised_loss",
    "supervised_loss_of_output",
    "supervised_per_sample_loss",
    "tlens_forward",
    "tlens_loss",
    "tlens_loss_of_output",
    "trace",
    "vector_to_params",
]
