"""Vector arithmetic, which other code may use; the drivers here bring their own."""

from .backend import LinAlgBackend, SingleDeviceBackend

__all__ = ["LinAlgBackend", "SingleDeviceBackend"]
