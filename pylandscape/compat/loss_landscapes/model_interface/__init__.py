"""Models as vectors: `model_wrapper` and `model_parameters`."""
