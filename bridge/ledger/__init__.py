"""The ledger: who holds what, on which plane, durably.

`holds` are the values and `account` the pure account of them, `rows` and `store` the SQLite file behind it, `ledger`
all of it together; `evidence` is the pure verdict on when a device plugin hold may end, `reconcile` gathers what it
judges, `doubts` deals with what the evidence shows and the ledger does not explain.
"""
