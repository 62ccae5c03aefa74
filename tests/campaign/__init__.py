"""Random histories on both planes, and an independent judge of what came of them.

`python -m tests.campaign` runs one on a simulated or a real node. `journal` is what is noted, `checker` judges it;
neither knows anything of the bridge, so that a defect of the ledger cannot hide itself.
"""
