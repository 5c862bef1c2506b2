"""Ranks: which data-parallel rank this is, and that all of them agree."""
