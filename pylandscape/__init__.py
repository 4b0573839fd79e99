"""pylandscape: the loss L(theta) of a PyTorch model, explored in parameter space."""
