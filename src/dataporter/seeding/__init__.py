"""Seeding: the hash behind every seed, and the global random generators seeded and put back."""
