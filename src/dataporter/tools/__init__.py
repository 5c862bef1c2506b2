"""Tools: the command line, and programs that look at a dataset, a loader or a checkpoint."""
