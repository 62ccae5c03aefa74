"""What a kubelet does with plugins, written once and run against the simulated node and against real ones."""
