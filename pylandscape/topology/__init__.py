"""The shape of a grid's values.

trees           merge trees and persistence pairs, `topology()` of results; distances: by gudhi

The way goes on in csrc/topology; what comes out is `Topology` of results/merge_trees.py.
"""
