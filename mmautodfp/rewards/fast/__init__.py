"""Stand-ins that answer as a model does, sooner."""
