"""The manifests under `kustomize/`: what they say, that they build, and that a real API server takes them."""
