"""A module becomes a Program: capture, interpretation, one file per family of ops."""
