"""The command line.

app             `main`: the parser, exit codes; words: what a result says of itself
effects         options that would have no effect are refused
common, inputs  options of the model; what users write: models, data, axes, files
surfaces, curvature, critical, clouds, trajectories (training, too), pictures (topology, too),
                info, studies: the commands

Nothing here imports torch before a command needs it.
"""
