"""Seeding: the randomness of every sample, a pure function of (seed, epoch, position)."""
