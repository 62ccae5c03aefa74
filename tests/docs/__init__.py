"""The pages of `docs/` and the README: their commands, links and manifests are what they say they are."""
