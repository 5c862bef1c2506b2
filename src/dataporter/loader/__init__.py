"""Loader: `ResumableDataLoader`, and what it is put together from."""
