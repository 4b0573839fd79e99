"""Loss, gradient and Hessian of many points of a small network, in float64."""
