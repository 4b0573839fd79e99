"""Bytes on disk: HDF5 and the store. Knows arrays and facts, no class of result."""
