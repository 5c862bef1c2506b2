"""Exactness in each framework after a kill: the same training, with three loaders."""
