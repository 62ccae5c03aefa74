"""The daemon as a program that tells what it told before at once again, where it would wait ten minutes.

`python -m tests.manifests.impatient SETTINGS`; nothing else about it is different.
"""

from __future__ import annotations

import runpy

from bridge.platform import events

if __name__ == "__main__":
    events.SAME_S = 0.0
    runpy.run_module("bridge.daemon", run_name="__main__", alter_sys=True)
