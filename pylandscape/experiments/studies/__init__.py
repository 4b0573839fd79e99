"""One published study a file, on public names: ``import pylandscape as pl``, and from the folder
above the data, the networks and the page. Each has a ``STUDY`` and reads as an example: its ``run``
is as long as the study, from the data to the claims, top to bottom.

`pylandscape reproduce NAME` runs one; its name is the file's, with dashes. To add one: a new file.
"""
