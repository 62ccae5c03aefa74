"""Speed and memory of the real daemon beside floors taken in the same run.

`python -m tests.bench` (`make bench`) boots the test bed's node, runs `bridge run` in it as a process with the rights
that it ships with, calls its sockets as the kubelet does, prints a table, writes `bench.json`, and ends 1 if a limit
is not met.
"""
