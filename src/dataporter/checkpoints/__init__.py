"""Checkpoints: files that a kill cannot damage, and the same last step on all ranks."""
