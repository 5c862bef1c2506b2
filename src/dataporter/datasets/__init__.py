"""Datasets: map-style data read by columns, by rows or by whole batches."""
