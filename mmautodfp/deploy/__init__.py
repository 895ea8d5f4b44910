"""A pruned model for other runtimes."""
