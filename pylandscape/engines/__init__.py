"""Who answers: engines, and the one contract that they satisfy.

contract        what an engine answers: shapes, errors
choose          which engine a landscape gets, and the report that says why
native          the compiled program on the CPU; recompute: with statistics of the data there
cuda/           the compiled program on a GPU
eager           torch itself, for every module; forward_pass: one batch of it; eager_parameters:
                theta in its copy; eager_comparison: the copy against the module;
                eager_derivatives, eager_graphs: its derivatives; eager_switches: what it turns in
                the whole process
points/         many points of a small network at once, in float64
capture_check   a capture against the module; slopes: derivatives against the losses

Who asks: landscape.py, and curvature/lanczos.py for products within the core.
"""
