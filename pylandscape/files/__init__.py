"""Bytes on disk. Knows arrays and facts, no class of result.

atomic          a file is replaced as a whole or not at all
hdf5            reading without executing anything; store: the format of result files

Results register themselves with the store (results/); unfinished ones are runs/journal.py and
runs/checkpoint.py.
"""
