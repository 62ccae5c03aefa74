"""The daemon: start-up and shut-down order, and what it shows of itself (logs, metrics, health). Nothing else."""
