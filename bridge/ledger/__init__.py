"""The ledger: who holds what, on which plane, durably.

`holds` is the pure account, `store` the SQLite file behind it, `ledger` the two together, `evidence` the pure
verdict on when a device plugin hold may end, `reconcile` the task that gathers that evidence.
"""
