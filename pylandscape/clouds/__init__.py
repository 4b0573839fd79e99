"""Walks through parameter space and the loss-gradient clouds that they leave."""
