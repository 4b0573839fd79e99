"""Long work that resumes.

request         what was asked, and of whom: equal requests have equal bits
resume          result, unfinished record or new run: the one protocol
chunks          many points in chunks of a fifth of a second, with a bar and an ear for Ctrl-C
items           walks, probes, runs of training: shared among the ranks of a group (ranks.py)
journal         what is done of points; checkpoint: what is done of an iteration
"""
