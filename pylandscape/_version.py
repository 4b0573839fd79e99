"""The version, for the facade and the command line."""

__version__ = "0.1.0"
