"""What L(theta) depends on.

layout          which parameter lies where in theta; directions: vectors to move along, draws
space           what of a landscape is passed where a whole one is not needed
data, losses    batches; losses that are compiled, free losses, objectives
checks          arguments of a landscape
running_statistics   of batch norm, where a point has them (bn="interpolate") or another model does
snapshot        the copy of the module that an engine moves; references: what of the module a
                function holds; held_state: puts back what a forward pass changed; outside: the
                same for closures, globals, classes; eval_mode: wrappers, and modules with an
                eval() of their own
checkpoints     files of state dicts
naming, source_code, identity   whose numbers these are: what a request records of L
random_source   every draw of the spectral path
sampling        errors of L from the data: what they are, and of what there are none

The way goes on in lowering/ (the module becomes a program) and engines/ (who answers).
"""
