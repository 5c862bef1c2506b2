"""Bench: how fast a loader is, where its time goes, and how many workers it should have."""
