"""Checkpoints: files that a kill cannot damage, and a common last step for all ranks."""
