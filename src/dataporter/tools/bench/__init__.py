"""Bench: the speed of a loader, where its time goes, and how many workers it needs."""
