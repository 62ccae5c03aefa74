"""Deliberate breaks of the code, one at a time, each of which some test has to catch: a proof that the proof can fail.

`breaks` is the list; `python -m tests.mutations` carries each out on a copy of the tree and runs what should go red.
"""
