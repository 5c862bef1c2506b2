"""Ranks: which data-parallel rank this process is, and whether all ranks agree."""
