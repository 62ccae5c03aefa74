"""Manifests from extended resources to claims and back: values in, values out.

The text is edited where something changes and nowhere else, so comments, order, quotes and indentation stay as they
are; each edit is read back and compared with what it was to do. Touches no file and no cluster. The ways in are
`run.to_claims` and `run.to_resources`.
"""
