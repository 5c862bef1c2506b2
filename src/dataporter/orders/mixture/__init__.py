"""Mixtures: which source, and which of its samples, comes at a position of a run (C14)."""
