"""Work on a whole cluster from a workstation: modes, status, plans.

`cluster` alone speaks to the API server, and alone loads the `kubernetes` package. Pure: `batches`, `marks`, `states`,
`verdicts`, `journey`, `workloads`, `survey`, `names`, `finding`, `findings`. `mode`, `status`, `plan` and `remote` are
what the command line calls.
"""
