"""Work on a whole cluster from a workstation: modes, status, plans.

`cluster` alone speaks to the API server, and alone loads the `kubernetes` package; `states`, `marks`, `batches`,
`verdicts` and `findings` are pure; the modules named as commands are the thin rims.
"""
