"""Devices: what they are (model), how they are found (scanner, kinds). Knows no plane and no ledger."""
