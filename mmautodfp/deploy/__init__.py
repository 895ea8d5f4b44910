"""Exporting a pruned model for other runtimes."""
