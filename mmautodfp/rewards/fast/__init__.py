"""Stand-ins: faster copies of a model with the same predictions, which rewards evaluate in its place."""
