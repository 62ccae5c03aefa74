"""A fleet of two real nodes goes from the device plugin API to DRA and back, under a workload that goes on serving."""
