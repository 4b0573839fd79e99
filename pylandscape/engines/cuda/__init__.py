"""The compiled program on a GPU.

engine          the engine, and one question about many points
program, conv   the program by torch's products and convolutions; replays: recorded as CUDA graphs
parameters      parameters of many points; precision: float32 throughout
derivatives     what is kept at one theta; sweep: one pass over the ops of a tile
derivative_ops, derivative_layers   a handler for each op; structure: what no theta changes
op              the program's ops as Python sees them

Kernels: csrc/cuda.
"""
