"""The list: for each invariant S1 to S5 of the ledger and each net against a lost race, how the code could be wrong."""

from __future__ import annotations

from tests.mutations import breaks_of_ledger, breaks_of_nets

BREAKS = (*breaks_of_ledger.BREAKS, *breaks_of_nets.BREAKS)
