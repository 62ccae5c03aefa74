"""A simulated kubelet, as strict as the real one where a plugin can tell (kubelet-contract A and B)."""
