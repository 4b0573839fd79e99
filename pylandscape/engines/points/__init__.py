"""Loss, gradient, Hessian and eigenvalues of many points of a small network, in float64.

evaluator       chooses: native (csrc/points, and csrc/derivatives point by point), cuda
                (csrc/cuda/hessians.cu) or eager (torch)
"""
