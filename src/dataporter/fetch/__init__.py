"""Fetch: a request becomes a batch."""
