"""Shared memory: Python objects held once for all processes."""
