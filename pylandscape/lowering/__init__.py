"""A module becomes a program of the core (csrc/program).

capture         the module as a graph, by fx or export, or the reason why not
interpreter     runs the graph once and keeps track of which row of a value is which element
build, loss     data, constants and the loss of a program
values          what stands for a tensor while the graph is lowered
all other files one family of torch's calls each (elementwise: activations and arithmetic): a
                handler under the call's name, in `OPS`

Who uses it: engines/native.py. How to add an op: csrc/README.md.
"""
