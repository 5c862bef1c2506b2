"""Benchmarks: one question a file, the peers beside us. `python -m benchmarks` answers them all."""
